//! What the services tell each other, as JSON. A field that is not known is ignored, so that they can be deployed one by one.

use serde::{Deserialize, Serialize};

/// From orders to payments.
pub(crate) const PAYMENTS_REQUESTED: &str = "payments-requested";
/// From payments to orders.
pub(crate) const ORDERS_DECIDED: &str = "orders-decided";
/// From orders to notifications.
pub(crate) const NOTICES: &str = "notices";

/// An order is to be paid.
#[derive(Serialize, Deserialize)]
pub(crate) struct PaymentRequested {
    pub(crate) order: String,
    pub(crate) customer: String,
    /// In cents.
    pub(crate) amount: i64,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Decision {
    Paid,
    Declined,
}

impl Decision {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Paid => "paid",
            Self::Declined => "declined",
        }
    }
}

/// An order was paid, or was not.
#[derive(Serialize, Deserialize)]
pub(crate) struct OrderDecided {
    pub(crate) order: String,
    pub(crate) decision: Decision,
}

/// A customer is to be told something.
#[derive(Serialize, Deserialize)]
pub(crate) struct Notice {
    pub(crate) order: String,
    pub(crate) customer: String,
    pub(crate) text: String,
}
