// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which console bytes are questions to a terminal? Where there is none, they are left out: nobody answers them.

/// "Where is the cursor?" (ECMA-48, device status report 6), as busybox asks after each prompt.
const QUERY: &[u8] = b"\x1b[6n";

/// Takes the questions out of a stream.
#[derive(Debug, Default)]
pub struct Queries {
    /// Bytes of a question that have come and are held back.
    held: usize,
}

impl Queries {
    /// What is left of `bytes`, with what was held back before and is no question.
    pub fn without(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut left = Vec::with_capacity(bytes.len() + QUERY.len());
        for &byte in bytes {
            if byte == QUERY[self.held] {
                self.held = (self.held + 1) % QUERY.len();
                continue;
            }
            left.extend_from_slice(&QUERY[..self.held]);
            // Only its first byte begins a question.
            self.held = usize::from(byte == QUERY[0]);
            if self.held == 0 {
                left.push(byte);
            }
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_go_and_everything_else_stays_however_it_is_cut() {
        let cases: [(&[u8], &[u8]); 5] = [
            (b"# \x1b[6nuname", b"# uname"),
            (b"\x1b[6n\x1b[6nx", b"x"),
            (b"\x1b[1mbold\x1b[0m", b"\x1b[1mbold\x1b[0m"),
            (b"\x1b[\x1b[6n6n.", b"\x1b[6n."),
            (b"\x1b\x1b[6x", b"\x1b\x1b[6x"),
        ];
        for (bytes, wanted) in cases {
            for cut in 0..bytes.len() {
                let mut queries = Queries::default();
                let mut left = queries.without(&bytes[..cut]);
                left.extend(queries.without(&bytes[cut..]));
                assert_eq!(left, wanted, "{:?} cut at {cut}", String::from_utf8_lossy(bytes));
            }
        }
    }
}
