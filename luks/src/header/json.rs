//! Strict JSON for LUKS2 metadata: RFC 8259 without a choice, so that no two readers can differ.
//!
//! Duplicate keys, comments, NaN, bad UTF-8, escaped NUL and deep nesting are errors. Numbers keep
//! their text; the metadata asks for integers only.

use std::collections::HashSet;

use crate::Error;

/// Deepest nesting; cryptsetup's own limit.
const DEPTH_MAX: usize = 32;

/// A JSON value; members of objects keep their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `[...]`
    Array(Vec<Value>),
    /// `true` or `false`
    Bool(bool),
    /// `null`
    Null,
    /// A number as it was written.
    Number(String),
    /// `{...}`
    Object(Vec<(String, Value)>),
    /// A string.
    String(String),
}

impl Value {
    /// Parses a whole text.
    ///
    /// # Errors
    /// `Damaged` with the offset of what is no JSON.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let text = std::str::from_utf8(text).map_err(|_| Error::damaged("JSON is no UTF-8"))?;
        let mut parser = Parser { text, at: 0 };
        let value = parser.value(0)?;
        parser.space();
        match parser.at == text.len() {
            true => Ok(value),
            false => Err(parser.error("text after the end")),
        }
    }

    /// The text, compact, in the order of the members.
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Number(text) => out.push_str(text),
            Self::String(text) => write_string(text, out),
            Self::Array(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    item.write(out);
                }
                out.push(']');
            }
            Self::Object(members) => {
                out.push('{');
                for (index, (key, value)) in members.iter().enumerate() {
                    if index > 0 {
                        out.push(',');
                    }
                    write_string(key, out);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number.to_string())
    }
}

fn write_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn value(&mut self, depth: usize) -> Result<Value, Error> {
        if depth > DEPTH_MAX {
            return Err(self.error("nested too deeply"));
        }
        self.space();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string().map(Value::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => {
                let words = [
                    ("true", Value::Bool(true)),
                    ("false", Value::Bool(false)),
                    ("null", Value::Null),
                ];
                for (word, value) in words {
                    if self.text[self.at..].starts_with(word) {
                        self.at += word.len();
                        return Ok(value);
                    }
                }
                Err(self.error("no value"))
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, Error> {
        self.at += 1;
        let mut members = Vec::new();
        // A set: an area of 1 MiB has room for 100,000 keys.
        let mut seen = HashSet::new();
        self.space();
        if self.take(b'}') {
            return Ok(Value::Object(members));
        }
        loop {
            self.space();
            let key = self.string()?;
            if !seen.insert(key.clone()) {
                return Err(self.error("a key twice"));
            }
            self.space();
            self.expect(b':')?;
            members.push((key, self.value(depth + 1)?));
            self.space();
            if self.take(b'}') {
                return Ok(Value::Object(members));
            }
            self.expect(b',')?;
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, Error> {
        self.at += 1;
        let mut items = Vec::new();
        self.space();
        if self.take(b']') {
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            if self.take(b']') {
                return Ok(Value::Array(items));
            }
            self.expect(b',')?;
        }
    }

    fn string(&mut self) -> Result<String, Error> {
        self.expect(b'"')?;
        let mut out = String::new();
        loop {
            let rest = &self.text[self.at..];
            let plain = rest.find(|c: char| c == '"' || c == '\\' || c < ' ');
            let plain = plain.ok_or_else(|| self.error("a string without end"))?;
            out.push_str(&rest[..plain]);
            self.at += plain;
            if self.take(b'"') {
                return Ok(out);
            }
            self.expect(b'\\')?;
            out.push(self.escaped()?);
        }
    }

    fn escaped(&mut self) -> Result<char, Error> {
        let kind = self.peek().ok_or_else(|| self.error("a string without end"))?;
        self.at += 1;
        Ok(match kind {
            b'"' | b'\\' | b'/' => char::from(kind),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let mut unit = self.hex4()?;
                if (0xd800..0xdc00).contains(&unit) && self.text[self.at..].starts_with("\\u") {
                    self.at += 2;
                    let low = self.hex4()?;
                    if !(0xdc00..0xe000).contains(&low) {
                        return Err(self.error("half a surrogate pair"));
                    }
                    unit = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                }
                match char::from_u32(unit) {
                    Some(c) if c != '\0' => c,
                    _ => return Err(self.error("an escaped NUL or half a surrogate pair")),
                }
            }
            _ => return Err(self.error("an unknown escape")),
        })
    }

    fn hex4(&mut self) -> Result<u32, Error> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4);
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.ok_or_else(|| self.error("four hexadecimal digits expected"))?;
        let digits = std::str::from_utf8(digits).expect("ASCII");
        self.at += 4;
        Ok(u32::from_str_radix(digits, 16).expect("hexadecimal"))
    }

    fn number(&mut self) -> Result<Value, Error> {
        let start = self.at;
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            let _sign = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        Ok(Value::Number(self.text[start..self.at].into()))
    }

    fn digits(&mut self) -> Result<(), Error> {
        let count = self.text[self.at..].bytes().take_while(u8::is_ascii_digit).count();
        self.at += count;
        match count {
            0 => Err(self.error("a digit expected")),
            _ => Ok(()),
        }
    }

    fn space(&mut self) {
        let rest = self.text[self.at..].bytes();
        self.at += rest.take_while(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r')).count();
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), Error> {
        match self.take(byte) {
            true => Ok(()),
            false => Err(self.error(&format!("'{}' expected", char::from(byte)))),
        }
    }

    fn error(&self, what: &str) -> Error {
        Error::damaged(format!("JSON at byte {}: {what}", self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_text_is_written_back() {
        let text = r#"{"a":[1,-2.5e+3,true,null,{}],"b":"x\"\\\u0001é","c":{"d":[]}}"#;
        let value = Value::parse(text.as_bytes()).expect("JSON");
        assert_eq!(value.text(), text);
        assert_eq!(
            Value::parse(br#" [ "\u00e9\ud83d\ude00\/" ] "#).expect("JSON").text(),
            "[\"é😀/\"]"
        );
    }

    #[test]
    fn what_other_readers_tolerate_is_an_error() {
        for text in [
            "",
            "{",
            "{}x",
            "[1,]",
            "{\"a\":1,}",
            "{'a':1}",
            "{\"a\":1,\"a\":2}",
            "NaN",
            "[Infinity]",
            "/**/{}",
            "01",
            "1.",
            ".5",
            "+1",
            "1e",
            "\"\\u0000\"",
            "\"\\ud800\"",
            "\"\\ud800\\u0041\"",
            "\"\\x41\"",
            "\"\t\"",
            "\"open",
            "tru",
            "[1 2]",
            "{\"a\" 1}",
            "\"\\u12\"",
        ] {
            assert!(Value::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(Value::parse(b"\"\xff\"").is_err());
        assert!(Value::parse("[".repeat(100_000).as_bytes()).is_err());
        let deep = "[".repeat(DEPTH_MAX) + "1" + &"]".repeat(DEPTH_MAX);
        assert!(Value::parse(deep.as_bytes()).is_ok());
    }
}
