//! What the endpoint refuses, in Amazon's words.

use serde_json::{Value, json};

/// A request or an entry of a batch that is refused.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The name of the error's shape.
    pub shape: &'static str,
    pub status: u16,
    pub message: String,
    pub sender_fault: bool,
}

impl Refusal {
    pub fn new(shape: &'static str, message: impl Into<String>) -> Self {
        Self { shape, status: 400, message: message.into(), sender_fault: true }
    }

    pub fn invalid(parameter: &str, value: impl std::fmt::Display, why: &str) -> Self {
        let message = format!("Value {value} for parameter {parameter} is invalid. Reason: {why}");
        Self::new("InvalidParameterValue", message)
    }

    pub fn missing(parameter: &str) -> Self {
        Self::new("MissingParameter", format!("The request must contain the parameter {parameter}."))
    }

    pub fn no_queue() -> Self {
        Self::new("QueueDoesNotExist", "The specified queue does not exist.")
    }

    pub fn throttled() -> Self {
        Self { status: 403, ..Self::new("RequestThrottled", "Rate exceeded") }
    }

    pub fn failed() -> Self {
        let message = "We encountered an internal error. Please try again.";
        Self { status: 500, sender_fault: false, ..Self::new("InternalError", message) }
    }

    /// What answers to batches and the older protocol call it.
    pub fn code(&self) -> String {
        match self.shape {
            "QueueDoesNotExist" => "AWS.SimpleQueueService.NonExistentQueue".to_owned(),
            "QueueNameExists" => "QueueAlreadyExists".to_owned(),
            "InvalidAttributeName"
            | "InvalidAttributeValue"
            | "InvalidMessageContents"
            | "InvalidParameterValue"
            | "MissingParameter"
            | "ReceiptHandleIsInvalid"
            | "RequestThrottled"
            | "InternalError"
            | "OverLimit" => self.shape.to_owned(),
            other => format!("AWS.SimpleQueueService.{other}"),
        }
    }

    /// The answer to an entry of a batch.
    pub fn entry(&self, id: &str) -> Value {
        json!({ "Id": id, "SenderFault": self.sender_fault, "Code": self.code(), "Message": self.message })
    }

    /// The answer to a request.
    pub fn body(&self) -> Value {
        json!({ "__type": format!("com.amazonaws.sqs#{}", self.shape), "message": self.message })
    }
}
