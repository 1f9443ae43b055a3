//! A bounded CBOR writer and pull reader (RFC 8949): no heap, no recursion, never a panic.

use crate::{Error, Result};

/// Writes into the caller's buffer. One that is too small is noticed once, by [`Writer::finish`].
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    length: usize,
    full: bool,
}

impl<'a> Writer<'a> {
    pub fn new(buffer: &'a mut [u8]) -> Writer<'a> {
        Writer { buffer, length: 0, full: false }
    }

    /// What was written; `TooBig` where it did not fit.
    pub fn finish(self) -> Result<&'a [u8]> {
        if self.full {
            return Err(Error::TooBig);
        }
        Ok(&self.buffer[..self.length])
    }

    /// So many keys and values follow, in turn; the host refuses a map with a key twice.
    pub fn map(&mut self, pairs: usize) {
        self.head(5, pairs as u64);
    }

    /// So many items follow.
    pub fn array(&mut self, items: usize) {
        self.head(4, items as u64);
    }

    pub fn text(&mut self, text: &str) {
        self.head(3, text.len() as u64);
        self.raw(text.as_bytes());
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.head(2, bytes.len() as u64);
        self.raw(bytes);
    }

    pub fn uint(&mut self, value: u64) {
        self.head(0, value);
    }

    pub fn int(&mut self, value: i64) {
        if value < 0 {
            self.head(1, !value as u64);
        } else {
            self.head(0, value as u64);
        }
    }

    pub fn bool(&mut self, value: bool) {
        self.raw(&[if value { 0xF5 } else { 0xF4 }]);
    }

    pub fn null(&mut self) {
        self.raw(&[0xF6]);
    }

    /// The shorter of 32 and 64 bits that holds the value exactly. NaN and infinities become null: results are
    /// published as JSON, which has neither.
    pub fn float(&mut self, value: f64) {
        let narrow = value as f32;
        if !value.is_finite() {
            self.null();
        } else if f64::from(narrow) == value {
            self.raw(&[0xFA]);
            self.raw(&narrow.to_be_bytes());
        } else {
            self.raw(&[0xFB]);
            self.raw(&value.to_be_bytes());
        }
    }

    /// Rounded to so many decimal places (0 to 9), so that a reader sees 0.9 and not 0.8999999761581421.
    pub fn decimal(&mut self, value: f64, places: u32) {
        let scale = 10_u64.pow(places.min(9)) as f64;
        let scaled = value * scale;
        if scaled > -9e15 && scaled < 9e15 {
            let half = if scaled < 0.0 { -0.5 } else { 0.5 };
            self.float((scaled + half) as i64 as f64 / scale);
        } else {
            self.float(value);
        }
    }

    fn head(&mut self, major: u8, argument: u64) {
        let wide = argument.to_be_bytes();
        let (info, size) = match argument {
            0..=23 => (argument as u8, 0),
            24..=0xFF => (24, 1),
            0x100..=0xFFFF => (25, 2),
            0x1_0000..=0xFFFF_FFFF => (26, 4),
            _ => (27, 8),
        };
        self.raw(&[major << 5 | info]);
        self.raw(&wide[8 - size..]);
    }

    fn raw(&mut self, bytes: &[u8]) {
        match self.buffer.get_mut(self.length..self.length + bytes.len()) {
            Some(room) if !self.full => {
                room.copy_from_slice(bytes);
                self.length += bytes.len();
            }
            _ => self.full = true,
        }
    }
}

/// One item; after an array or a map its entries follow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Item<'a> {
    Int(i64),
    Bytes(&'a [u8]),
    Text(&'a str),
    Array(usize),
    /// Pairs.
    Map(usize),
    Bool(bool),
    /// Null, and CBOR's undefined.
    Null,
    Float(f64),
}

/// Yields one item after the other. `Invalid` is everything that is malformed, and what the appliance does not
/// use: indefinite lengths, tags, integers beyond i64.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(data: &'a [u8]) -> Reader<'a> {
        Reader { rest: data }
    }

    pub fn at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next item; the end of the input is `Invalid` too: ask [`Reader::at_end`] where it may come.
    pub fn next(&mut self) -> Result<Item<'a>> {
        let initial = self.take(1)?[0];
        let (major, info) = (initial >> 5, initial & 31);
        let argument = match info {
            0..=23 => u64::from(info),
            24..=27 => self.take(1 << (info - 24))?.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)),
            _ => return Err(Error::Invalid),
        };
        match major {
            0 => i64::try_from(argument).map(Item::Int).map_err(|_| Error::Invalid),
            1 => i64::try_from(argument).map(|value| Item::Int(!value)).map_err(|_| Error::Invalid),
            2 => self.string(argument).map(Item::Bytes),
            3 => core::str::from_utf8(self.string(argument)?).map(Item::Text).map_err(|_| Error::Invalid),
            4 => self.entries(argument, 1).map(Item::Array),
            5 => self.entries(argument, 2).map(Item::Map),
            7 => simple(info, argument),
            _ => Err(Error::Invalid),
        }
    }

    /// The next item, which must be a text.
    pub fn text(&mut self) -> Result<&'a str> {
        match self.next()? {
            Item::Text(text) => Ok(text),
            _ => Err(Error::Invalid),
        }
    }

    /// The next item, which must be an integer that is not negative.
    pub fn uint(&mut self) -> Result<u64> {
        match self.next()? {
            Item::Int(value) => u64::try_from(value).map_err(|_| Error::Invalid),
            _ => Err(Error::Invalid),
        }
    }

    /// The next item, which must be an array; its number of items.
    pub fn array(&mut self) -> Result<usize> {
        match self.next()? {
            Item::Array(items) => Ok(items),
            _ => Err(Error::Invalid),
        }
    }

    /// The next item, which must be a map; its number of pairs.
    pub fn map(&mut self) -> Result<usize> {
        match self.next()? {
            Item::Map(pairs) => Ok(pairs),
            _ => Err(Error::Invalid),
        }
    }

    /// Pass over one whole value.
    pub fn skip(&mut self) -> Result<()> {
        let mut pending: u64 = 1;
        while pending > 0 {
            pending -= 1;
            match self.next()? {
                Item::Array(items) => pending += items as u64,
                Item::Map(pairs) => pending += 2 * pairs as u64,
                _ => {}
            }
        }
        Ok(())
    }

    /// Every entry takes at least one byte, so a count beyond the input is a lie.
    fn entries(&self, count: u64, bytes_each: u64) -> Result<usize> {
        if count > self.rest.len() as u64 / bytes_each {
            return Err(Error::Invalid);
        }
        Ok(count as usize)
    }

    fn string(&mut self, length: u64) -> Result<&'a [u8]> {
        self.entries(length, 1).and_then(|length| self.take(length))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        if count > self.rest.len() {
            return Err(Error::Invalid);
        }
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        Ok(taken)
    }
}

fn simple(info: u8, argument: u64) -> Result<Item<'static>> {
    match info {
        20 => Ok(Item::Bool(false)),
        21 => Ok(Item::Bool(true)),
        22 | 23 => Ok(Item::Null),
        25 => Ok(Item::Float(half(argument as u32))),
        26 => Ok(Item::Float(f32::from_bits(argument as u32).into())),
        27 => Ok(Item::Float(f64::from_bits(argument))),
        _ => Err(Error::Invalid),
    }
}

fn half(bits: u32) -> f64 {
    let (exponent, fraction) = (bits >> 10 & 31, bits & 1023);
    let magnitude = match exponent {
        0 => fraction as f32 / 16_777_216.0, // zero and subnormal: fraction * 2^-24
        31 => f32::from_bits(255 << 23 | fraction << 13),
        _ => f32::from_bits((exponent + 112) << 23 | fraction << 13),
    };
    f64::from(if bits & 0x8000 == 0 { magnitude } else { -magnitude })
}
