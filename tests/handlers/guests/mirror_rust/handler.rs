//! Emits its payload again, item by item; then the frame's header, as a check of its layout.
#![no_std]

use appliance::cbor::{Item, Reader, Writer};
use appliance::{emit, frame, Crop, Error, Format, FrameInfo, Result, Tensor};
use core::mem::size_of;

const CAPACITY: usize = 8192;
const COPY_TAG: u32 = 1;
const HEADER_TAG: u32 = 2;

const _: () = assert!(size_of::<FrameInfo>() == 40 && size_of::<Tensor>() == 56 && size_of::<Crop>() == 16);

fn write_item(out: &mut Writer, item: Item) {
    match item {
        Item::Int(value) => out.int(value),
        Item::Bytes(bytes) => out.bytes(bytes),
        Item::Text(text) => out.text(text),
        Item::Array(items) => out.array(items),
        Item::Map(pairs) => out.map(pairs),
        Item::Bool(value) => out.bool(value),
        Item::Null => out.null(),
        Item::Float(value) => out.float(value),
    }
}

fn emit_copy(payload: &[u8]) -> Result<()> {
    let mut whole = Reader::new(payload);
    whole.skip()?;
    if !whole.at_end() {
        return Err(Error::Invalid);
    }
    let mut input = Reader::new(payload);
    let mut copy = [0; CAPACITY];
    let mut out = Writer::new(&mut copy);
    while !input.at_end() {
        write_item(&mut out, input.next()?);
    }
    emit(COPY_TAG, Format::Cbor, out.finish()?)
}

fn handle() -> Result<()> {
    let info = frame()?;
    let mut buffer = [0; CAPACITY];
    let length = info.read(0, &mut buffer)?;
    emit_copy(&buffer[..length])?;

    let mut header = [0; 64];
    let mut out = Writer::new(&mut header);
    out.array(6);
    out.uint(info.seq);
    out.uint(info.captured_ns);
    for value in [info.tag, info.width, info.height, info.length] {
        out.uint(value.into());
    }
    emit(HEADER_TAG, Format::Cbor, out.finish()?)
}

appliance::handler!(handle);
