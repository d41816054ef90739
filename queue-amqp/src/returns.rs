//! Which message one that came back is.

use bytes::Bytes;
use lapin::message::{BasicReturnMessage, Delivery};
use lapin::types::ShortString;

use crate::convert::outgoing;
use crate::flight::State;
use crate::window::Window;

impl Window {
    /// Finds the message that was returned.
    ///
    /// One with an id that was made here has its number in it. One with another id, by its content: at `place`, or any
    /// other of the same content. Of several with the same content and destination, the broker has as many as were not
    /// returned, whichever they are.
    pub(super) fn attribute(&mut self, place: usize, returned: BasicReturnMessage) {
        let BasicReturnMessage { mut delivery, reply_code, reply_text } = returned;
        let payload = Bytes::from(std::mem::take(&mut delivery.data));
        let found = self.numbered(&payload, &delivery).or_else(|| {
            if self.is_return_of(place, &payload, &delivery, true) {
                return Some(place);
            }
            // What was returned has been written.
            for flight in self.flights.range_mut(..self.published) {
                if let Some(error) = flight.settle_writing(&mut *self.slots) {
                    self.broken.get_or_insert(error);
                }
            }
            let find = |exact| (0..self.published).find(|at| self.is_return_of(*at, &payload, &delivery, exact));
            find(true).or_else(|| find(false))
        });
        match found {
            Some(found) => {
                self.flights[found].returned = Some(Box::new((reply_code, reply_text.to_string())));
            }
            None => tracing::error!("a message came back that nobody sent"),
        }
    }

    /// The place of the message that was sent under an id made here.
    fn numbered(&mut self, payload: &Bytes, delivery: &Delivery) -> Option<usize> {
        let id = delivery.properties.message_id().as_ref().map(ShortString::as_str)?;
        let number: u64 = id.strip_prefix(self.prefix.as_str())?.parse().ok()?;
        let place = number.checked_sub(self.base).and_then(|at| usize::try_from(at).ok())?;
        if let Some(error) = self.flights.get_mut(place)?.settle_writing(&mut *self.slots) {
            self.broken.get_or_insert(error);
        }
        // Whoever received the message may send it on, with its id.
        let (State::Confirming(_, message) | State::Answered(message, _)) = &self.flights[place].state else {
            return None;
        };
        (message.get_id().is_none() && self.is_return_of(place, payload, delivery, false)).then_some(place)
    }

    fn is_return_of(&self, place: usize, payload: &Bytes, delivery: &Delivery, exact: bool) -> bool {
        let flight = &self.flights[place];
        let (State::Confirming(_, message) | State::Answered(message, _)) = &flight.state else { return false };
        let id = || message.get_id() == delivery.properties.message_id().as_ref().map(ShortString::as_str);
        flight.returned.is_none()
            && message.payload() == payload
            && (!exact || id())
            && self.origin(place).is_some_and(|origin| {
                outgoing(&origin.address, message, None, self.frame_max).is_ok_and(|out| {
                    out.exchange == delivery.exchange
                        && out.routing_key == delivery.routing_key
                        && (!exact || out.properties == delivery.properties)
                })
            })
    }
}
