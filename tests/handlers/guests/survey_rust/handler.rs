//! Uses every function of the crate once and emits what it saw; with the setting `mode` = "panic" it panics.
#![no_std]

use appliance::cbor::Writer;
use appliance::{emit, frame, log, now_ns, setting, state, Crop, Fit, Format, Level, Model, Result};

const PART: Crop = Crop { x: 1, y: 2, width: 30, height: 40 };

fn init() -> Result<()> {
    let mut buffer = [0; 16];
    match setting("mode", &mut buffer)? {
        Some("refuse") => Model::open("absent").map(|_| ()),
        _ => Ok(()),
    }
}

/// An error as its code, anything else as 0.
fn code<T>(result: Result<T>) -> i64 {
    result.err().map_or(0, |error| error.code().into())
}

fn survey_frame(out: &mut Writer) -> Result<()> {
    let info = frame()?;
    let mut buffer = [0; 64];
    out.text(info.source(&mut buffer)?);
    out.bool(info.is(Format::Jpeg));
    let length = info.read(2, &mut buffer[..3])?;
    out.bytes(&buffer[..length]);
    out.int(code(info.payload(&mut buffer[..4])));
    let length = info.pixels(None, Format::Gray, 4, 2, &mut buffer)?;
    out.bytes(&buffer[..length]);
    out.int(code(info.pixels(Some(&PART), Format::Rgb, 40, 40, &mut buffer)));
    Ok(())
}

fn survey_model(out: &mut Writer) -> Result<()> {
    let mut text = [0; 8];
    let mut floats = [0.0; 2];
    let model = Model::open("digits")?;
    out.int(code(Model::open("absent")));
    out.uint(model.input(0)?.shape[1].into());
    out.uint(model.output(0)?.elements.into());
    out.int(code(model.output(9)));
    out.uint(model.output_named("scores")?.into());
    out.int(code(model.output_named("boxes")));
    out.text(model.label(0, &mut text)?);
    out.int(code(model.label(1, &mut text)));
    out.int(code(model.label(2, &mut text)));
    out.int(code(model.output_f32(0, 0, &mut floats)));
    model.infer_frame(Some(&PART), Fit::Letterbox)?;
    out.uint(model.output_f32(0, 1, &mut floats)? as u64);
    out.float(floats[0].into());
    out.int(code(model.infer_tensor(&[0; 3])));
    model.infer_tensor(&[0; 12])?;
    let length = model.output_read(0, 4, &mut text)?;
    out.bytes(&text[..length]);
    Ok(())
}

fn survey_state(out: &mut Writer) -> Result<()> {
    let mut buffer = [0; 16];
    out.bool(state::get("last", &mut buffer)?.is_none());
    state::set("last", b"kept")?;
    out.bytes(state::get("last", &mut buffer)?.unwrap_or(b""));
    out.int(code(state::set("last", &[0; 5000])));
    out.bool(setting("absent", &mut buffer)?.is_none());
    out.text(setting("mode", &mut buffer)?.unwrap_or(""));
    out.int(code(setting("mode", &mut buffer[..2])));
    out.int(code(emit(1, Format::Rgb, b"")));
    out.bool(now_ns() > 0);
    Ok(())
}

fn handle() -> Result<()> {
    let mut buffer = [0; 16];
    if setting("mode", &mut buffer)? == Some("panic") {
        let index = frame()?.length as usize;
        buffer[index * 100] = 1;
    }
    log(Level::Warning, "surveying");
    let mut report = [0; 256];
    let mut out = Writer::new(&mut report);
    out.array(28);
    survey_frame(&mut out)?;
    survey_model(&mut out)?;
    survey_state(&mut out)?;
    emit(1, Format::Cbor, out.finish()?)
}

appliance::handler!(handle, init = init);
