//! Receipt handles: of which queue, of which message, of which of its receives.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;

use super::refusal::Refusal;

/// What a receipt handle says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The place of the message in its queue.
    pub place: u64,
    /// Which receive of it this was.
    pub number: u64,
}

impl Receipt {
    pub fn handle(self, queue: &str) -> String {
        BASE64.encode(format!("{queue} {} {}", self.place, self.number))
    }

    /// Reads a handle; one of another queue, or none at all, is refused.
    pub fn read(handle: &str, queue: &str) -> Result<Self, Refusal> {
        let read = || {
            let text = String::from_utf8(BASE64.decode(handle).ok()?).ok()?;
            let (of, numbers) = text.split_once(' ')?;
            let (place, number) = numbers.split_once(' ')?;
            (of == queue).then_some(Self { place: place.parse().ok()?, number: number.parse().ok()? })
        };
        read().ok_or_else(|| Refusal {
            status: 404,
            ..Refusal::new("ReceiptHandleIsInvalid", "The input receipt handle is invalid.")
        })
    }
}
