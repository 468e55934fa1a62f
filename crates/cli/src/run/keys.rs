//! What a person types: bytes for the guest, and keys that mean something to us.

use crate::arguments::EscapeKey;

/// What to do with typed bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Give them to the guest.
    Type(Vec<u8>),
    /// Ctrl-C.
    Interrupt,
    /// Stop the machine.
    Stop,
    /// Kill it.
    Kill,
    /// Let it run on in the background.
    Detach,
    /// Say what the keys mean.
    Help,
}

/// Reads keys. An escape sequence may be split over reads.
#[derive(Debug)]
pub(crate) struct Keys {
    escape: EscapeKey,
    pass_ctrl_c: bool,
    escaped: bool,
}

const CTRL_C: u8 = 0x03;

impl Keys {
    pub(crate) fn new(escape: EscapeKey, pass_ctrl_c: bool) -> Self {
        Self { escape, pass_ctrl_c, escaped: false }
    }

    /// What the next typed bytes ask for, in order.
    pub(crate) fn read(&mut self, typed: &[u8]) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut plain = Vec::new();
        for &byte in typed {
            let action = if std::mem::take(&mut self.escaped) {
                match byte {
                    b'q' | b'Q' => Some(Action::Stop),
                    b'k' | b'K' => Some(Action::Kill),
                    b'd' | b'D' => Some(Action::Detach),
                    b'?' | b'h' => Some(Action::Help),
                    _ if Some(byte) == self.escape.0 => {
                        plain.push(byte);
                        None
                    }
                    // No sequence of ours: what was typed goes to the guest whole.
                    _ => {
                        plain.extend(self.escape.0);
                        plain.push(byte);
                        None
                    }
                }
            } else if Some(byte) == self.escape.0 {
                self.escaped = true;
                None
            } else if byte == CTRL_C && !self.pass_ctrl_c {
                Some(Action::Interrupt)
            } else {
                plain.push(byte);
                None
            };
            if let Some(action) = action {
                if !plain.is_empty() {
                    actions.push(Action::Type(std::mem::take(&mut plain)));
                }
                actions.push(action);
            }
        }
        if !plain.is_empty() {
            actions.push(Action::Type(plain));
        }
        actions
    }

    /// The help text.
    pub(crate) fn help(&self) -> String {
        let key = self.escape.name();
        format!("{key} then: q stop, k kill, d detach, {key} type {key}, ? this help")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new(EscapeKey(Some(0x1d)), false)
    }

    fn typed(text: &[u8]) -> Action {
        Action::Type(text.to_vec())
    }

    #[test]
    fn plain_bytes_pass_whole() {
        assert_eq!(keys().read(b"ls\r\x1b[A\x00\xff"), [typed(b"ls\r\x1b[A\x00\xff")]);
    }

    #[test]
    fn sequences_act_in_the_order_in_which_they_were_typed() {
        let expected = [typed(b"a"), Action::Stop, typed(b"b"), Action::Kill, Action::Detach, Action::Help];
        assert_eq!(keys().read(b"a\x1dqb\x1dk\x1dd\x1d?"), expected);
    }

    #[test]
    fn a_sequence_may_be_split() {
        let mut keys = keys();
        assert_eq!(keys.read(b"a\x1d"), [typed(b"a")]);
        assert_eq!(keys.read(b"d"), [Action::Detach]);
    }

    #[test]
    fn the_escape_key_twice_types_it_and_an_unknown_sequence_is_typed_whole() {
        assert_eq!(keys().read(b"\x1d\x1d"), [typed(b"\x1d")]);
        assert_eq!(keys().read(b"\x1dx"), [typed(b"\x1dx")]);
    }

    #[test]
    fn ctrl_c_interrupts_unless_it_is_passed() {
        assert_eq!(keys().read(b"a\x03b"), [typed(b"a"), Action::Interrupt, typed(b"b")]);
        assert_eq!(Keys::new(EscapeKey(None), true).read(b"\x03\x1dq"), [typed(b"\x03\x1dq")]);
    }
}
