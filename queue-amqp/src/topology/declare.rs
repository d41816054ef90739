//! Making what is missing, and comparing what exists.
//!
//! The protocol tells of what exists only that it does. Declaring it again succeeds when every argument is the same,
//! and is refused with the first that differs. So it is declared again and again, with the server's value put in for
//! each argument that nobody asked for, until it succeeds or one that was asked for differs.

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{ExchangeKind, Queue};
use queue_core::{Error, ErrorKind, Result};

use super::Topologist;
use crate::convert::{arguments, short};
use crate::error::{not_connected, within};
use crate::topology::arguments::Wanted;
use crate::topology::native::{Arguments, ExchangeType, Native, QUEUE_TYPE};
use crate::topology::refusal::{Current, Refusal};

/// More arguments than a queue has; each takes two rounds at most, and the attributes one.
const ROUNDS: usize = 80;

/// What is being declared, as the server would have to have it.
struct Draft {
    what: &'static str,
    name: String,
    durable: bool,
    auto_delete: bool,
    /// Of an exchange.
    internal: bool,
    kind: ExchangeKind,
    arguments: Arguments,
}

impl Draft {
    fn new(what: &'static str, name: &str, arguments: Arguments) -> Self {
        let name = name.to_owned();
        Self { what, name, durable: true, auto_delete: false, internal: false, kind: ExchangeKind::Fanout, arguments }
    }

    fn table(&self) -> Result<FieldTable> {
        arguments(self.arguments.iter().map(|(name, value)| (name.as_str(), value.clone())))
    }

    fn conflict(&self, argument: &str, asked: &str, found: &str) -> Error {
        Error::new(ErrorKind::Conflict, format!("the {} exists with another `{argument}`", self.what))
            .with_operation("declare")
            .with_context(self.what, &self.name)
            .with_context("argument", argument)
            .with_context("asked", asked)
            .with_context("found", found)
    }

    /// Takes over what exists where it was not asked for.
    fn adopt(&mut self, refusal: &Refusal<'_>, asked: &Arguments, kind_asked: bool) -> Result<()> {
        let Refusal { argument, current } = refusal;
        let is = || current.shown() == "true";
        match *argument {
            "durable" => self.durable = is(),
            "auto_delete" => self.auto_delete = is(),
            "internal" => self.internal = is(),
            "type" if kind_asked => return Err(self.conflict("type", name_of(&self.kind), current.shown())),
            // A name with a hyphen is quoted once more.
            "type" => self.kind = kind_named(current.shown().trim_matches('\'')),
            _ => {
                if let Some(wanted) = asked.get(*argument) {
                    // The type of queue that a server makes when none is named.
                    let is_default = *argument == QUEUE_TYPE && *current == Current::None && shown(wanted) == "classic";
                    if !is_default && shown(wanted) != current.shown() {
                        return Err(self.conflict(argument, &shown(wanted), current.shown()));
                    }
                }
                self.adopt_argument(argument, current)?;
            }
        }
        Ok(())
    }

    fn adopt_argument(&mut self, argument: &str, current: &Current<'_>) -> Result<()> {
        match current {
            Current::Typed(_, value) => drop(self.arguments.insert(argument.to_owned(), value.clone())),
            Current::Untyped(text) if argument == QUEUE_TYPE => {
                self.arguments.insert(argument.to_owned(), AMQPValue::LongString((*text).into()));
            }
            // Left out, the server tells the type of its own.
            Current::None | Current::Untyped(_) if self.arguments.remove(argument).is_some() => {}
            _ => {
                return Err(Error::new(ErrorKind::Conflict, "what exists cannot be compared over this protocol")
                    .with_operation("declare")
                    .with_context(self.what, &self.name)
                    .with_context("argument", argument)
                    .with_context("found", current.shown()));
            }
        }
        Ok(())
    }
}

fn name_of(kind: &ExchangeKind) -> &str {
    match kind {
        ExchangeKind::Custom(name) => name,
        ExchangeKind::Direct => "direct",
        ExchangeKind::Fanout => "fanout",
        ExchangeKind::Headers => "headers",
        ExchangeKind::Topic => "topic",
    }
}

fn kind_named(name: &str) -> ExchangeKind {
    match name {
        "direct" => ExchangeKind::Direct,
        "fanout" => ExchangeKind::Fanout,
        "headers" => ExchangeKind::Headers,
        "topic" => ExchangeKind::Topic,
        other => ExchangeKind::Custom(other.to_owned()),
    }
}

/// An argument as the server shows it.
pub(crate) fn shown(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        AMQPValue::LongLongInt(number) => number.to_string(),
        AMQPValue::Boolean(flag) => flag.to_string(),
        other => format!("{other:?}"),
    }
}

impl Topologist<'_> {
    /// Makes the queue, or finds that it is as asked for; what it was made with.
    pub(super) async fn make_queue(&self, name: &str, wanted: &Wanted) -> Result<Arguments> {
        let mut draft = Draft::new("queue", name, wanted.all.clone());
        for _ in 0..ROUNDS {
            let options = QueueDeclareOptions {
                durable: draft.durable,
                auto_delete: draft.auto_delete,
                ..QueueDeclareOptions::default()
            };
            let Err(error) = self.declare_queue(name, options, draft.table()?).await else {
                return Ok(draft.arguments);
            };
            let Some(refusal) = differs(&error) else { return Err(error) };
            draft.adopt(&refusal, &wanted.asked, false)?;
        }
        Err(endless("queue", name))
    }

    pub(super) async fn declare_queue(
        &self,
        name: &str,
        options: QueueDeclareOptions,
        arguments: FieldTable,
    ) -> Result<Queue> {
        let channel = self.channel().await?;
        within(self.deadline, "declare", channel.queue_declare(short(name)?, options, arguments))
            .await
            .map_err(|e| e.with_context("queue", name))
    }

    /// Makes the exchange, or finds that it is as asked for.
    pub(super) async fn make_exchange(&self, name: &str, native: &Native) -> Result<()> {
        let mut draft = Draft::new("exchange", name, native.exchange.clone());
        draft.kind = native.exchange_type.unwrap_or(ExchangeType::Fanout).kind();
        // A type that the server does not know costs the connection: not the one that others are on.
        let alone = match native.exchange_type {
            Some(kind) if !kind.is_builtin() => Some(self.link.another(self.deadline).await?),
            _ => None,
        };
        for _ in 0..ROUNDS {
            let channel = match &alone {
                Some(session) => session.channel(self.deadline).await?.ok_or_else(not_connected)?,
                None => self.channel().await?,
            };
            let options = ExchangeDeclareOptions {
                durable: draft.durable,
                auto_delete: draft.auto_delete,
                internal: draft.internal,
                ..ExchangeDeclareOptions::default()
            };
            let declared = channel.exchange_declare(short(name)?, draft.kind.clone(), options, draft.table()?);
            let Err(error) = within(self.deadline, "declare", declared).await else { return Ok(()) };
            let error = error.with_context("exchange", name);
            let Some(refusal) = differs(&error) else { return Err(error) };
            draft.adopt(&refusal, &native.exchange, native.exchange_type.is_some())?;
        }
        Err(endless("exchange", name))
    }
}

fn differs(error: &Error) -> Option<Refusal<'_>> {
    Refusal::parse(error.message()).filter(|_| error.kind() == ErrorKind::Conflict)
}

fn endless(what: &'static str, name: &str) -> Error {
    Error::new(ErrorKind::Conflict, "what exists cannot be compared: somebody changes it meanwhile")
        .with_operation("declare")
        .with_context(what, name)
}
