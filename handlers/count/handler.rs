//! count: observes what `detect` emits and tells how many objects of each label there are in this frame, how many
//! there were at most, and in how many frames each was seen.
//!
//! The counters are kept in the handler's state, one value per source, and nowhere else: they survive a restart, and
//! a frame that fails leaves no trace in them.
#![no_std]

mod tally;

use appliance::cbor::{Reader, Writer};
use appliance::{emit, frame, log, state, Error, Format, Level, Result};
use tally::Tally;

const RESULT_TAG: u32 = 0x14;
/// A hundred objects with labels of 256 bytes.
const MAX_PAYLOAD: usize = 40 << 10;
const MAX_STATE: usize = 4096;
const MAX_RESULT: usize = 16 << 10;

fn handle() -> Result<()> {
    let info = frame()?;
    let mut name = [0; 64];
    let source = info.source(&mut name)?;
    let mut payload = [0; MAX_PAYLOAD];
    let detected = info.payload(&mut payload)?;

    let mut tally = restore(source)?;
    if let Err(error) = count(detected, &mut tally) {
        log(Level::Error, "the frame is not a result of detect: {\"objects\": [{\"label\": text, ...}, ...]}");
        return Err(error);
    }
    tally.close_frame();
    store(source, &tally)?;

    let mut result = [0; MAX_RESULT];
    let mut out = Writer::new(&mut result);
    tally.report(&mut out);
    emit(RESULT_TAG, Format::Cbor, out.finish()?)
}

fn restore(source: &str) -> Result<Tally> {
    let mut value = [0; MAX_STATE];
    let stored = match state::get(source, &mut value)? {
        Some(stored) => stored,
        None => return Ok(Tally::new()),
    };
    Tally::decode(stored).or_else(|_| {
        log(Level::Warning, "the stored counters cannot be read: counting starts anew");
        Ok(Tally::new())
    })
}

fn store(source: &str, tally: &Tally) -> Result<()> {
    let mut value = [0; MAX_STATE];
    let mut out = Writer::new(&mut value);
    tally.encode(&mut out);
    state::set(source, out.finish()?)
}

/// Count the labels of all objects.
fn count(detected: &[u8], tally: &mut Tally) -> Result<()> {
    let mut input = Reader::new(detected);
    let mut found = false;
    for _ in 0..input.map()? {
        if input.text()? != "objects" {
            input.skip()?;
            continue;
        }
        found = true;
        for _ in 0..input.array()? {
            tally.add(label(&mut input)?);
        }
    }
    if found && input.at_end() {
        Ok(())
    } else {
        Err(Error::Invalid)
    }
}

/// The label of one object, whatever else it holds.
fn label<'a>(input: &mut Reader<'a>) -> Result<&'a str> {
    let mut label = None;
    for _ in 0..input.map()? {
        if input.text()? == "label" {
            label = Some(input.text()?);
        } else {
            input.skip()?;
        }
    }
    label.ok_or(Error::Invalid)
}

appliance::handler!(handle);
