//! The counters of one source.

use appliance::cbor::{Reader, Writer};
use appliance::{Error, Result};

/// Labels beyond this number are not counted: 64 entries of at most 63 bytes, and 11 bytes around them, are under
/// the 4096 bytes of a value of state.
const MAX_LABELS: usize = 64;
/// Bytes of a label; a longer one is cut.
const MAX_LABEL: usize = 48;
const MAX_COUNT: u64 = 0xFFFF;

#[derive(Clone, Copy)]
struct Entry {
    label: [u8; MAX_LABEL],
    length: usize,
    now: u64,
    most: u64,
    seen: u64,
}

const EMPTY: Entry = Entry { label: [0; MAX_LABEL], length: 0, now: 0, most: 0, seen: 0 };

impl Entry {
    fn bytes(&self) -> &[u8] {
        &self.label[..self.length]
    }

    fn label(&self) -> &str {
        // it was copied from a str, cut between characters
        core::str::from_utf8(self.bytes()).unwrap_or("")
    }
}

pub struct Tally {
    frames: u64,
    entries: [Entry; MAX_LABELS],
    used: usize,
}

impl Tally {
    pub fn new() -> Tally {
        Tally { frames: 0, entries: [EMPTY; MAX_LABELS], used: 0 }
    }

    /// One more object in the current frame.
    pub fn add(&mut self, label: &str) {
        if let Some(entry) = self.entry(label) {
            entry.now = (entry.now + 1).min(MAX_COUNT);
        }
    }

    /// The current frame is counted.
    pub fn close_frame(&mut self) {
        self.frames += 1;
        for entry in &mut self.entries[..self.used] {
            entry.most = entry.most.max(entry.now);
            entry.seen += u64::from(entry.now > 0);
        }
    }

    /// The result: {"counts", "max", "seen", "frames"}; `counts` names only what is there now.
    pub fn report(&self, out: &mut Writer) {
        let entries = &self.entries[..self.used];
        out.map(4);
        out.text("counts");
        out.map(entries.iter().filter(|entry| entry.now > 0).count());
        for entry in entries.iter().filter(|entry| entry.now > 0) {
            out.text(entry.label());
            out.uint(entry.now);
        }
        out.text("max");
        write_map(out, entries, |entry| entry.most);
        out.text("seen");
        write_map(out, entries, |entry| entry.seen);
        out.text("frames");
        out.uint(self.frames);
    }

    /// As state: [frames, [label, most, seen], ...].
    pub fn encode(&self, out: &mut Writer) {
        out.array(1 + self.used);
        out.uint(self.frames);
        for entry in &self.entries[..self.used] {
            out.array(3);
            out.text(entry.label());
            out.uint(entry.most);
            out.uint(entry.seen);
        }
    }

    pub fn decode(stored: &[u8]) -> Result<Tally> {
        let mut input = Reader::new(stored);
        let mut tally = Tally::new();
        let items = input.array()?;
        tally.frames = input.uint()?;
        for _ in 1..items {
            if input.array()? != 3 {
                return Err(Error::Invalid);
            }
            let entry = tally.entry(input.text()?).ok_or(Error::Invalid)?;
            entry.most = input.uint()?.min(MAX_COUNT);
            entry.seen = input.uint()?;
        }
        Ok(tally)
    }

    /// The entry of a label, a new one if need be; None when there is no room.
    fn entry(&mut self, label: &str) -> Option<&mut Entry> {
        let label = cut(label).as_bytes();
        let place = self.entries[..self.used].iter().position(|entry| entry.bytes() == label);
        let place = place.unwrap_or(self.used);
        let entry = self.entries.get_mut(place)?;
        if place == self.used {
            entry.length = label.len();
            entry.label[..label.len()].copy_from_slice(label);
            self.used += 1;
        }
        Some(entry)
    }
}

fn write_map(out: &mut Writer, entries: &[Entry], value: fn(&Entry) -> u64) {
    out.map(entries.len());
    for entry in entries {
        out.text(entry.label());
        out.uint(value(entry));
    }
}

/// At most MAX_LABEL bytes, cut between characters.
fn cut(label: &str) -> &str {
    let mut end = label.len().min(MAX_LABEL);
    while !label.is_char_boundary(end) {
        end -= 1;
    }
    &label[..end]
}
