//! {{name}}: how bright each picture is, from 0 to 1, and whether that is dark.
#![no_std]

use appliance::cbor::Writer;
use appliance::{emit, frame, log, setting, Error, Format, Level, Result};

/// The setting, read for every frame: a handler without a heap has few better places to keep it.
fn dark() -> Result<f64> {
    let mut buffer = [0; 16];
    match setting("dark", &mut buffer)?.unwrap_or("0.2").parse() {
        Ok(value) => Ok(value),
        Err(_) => {
            log(Level::Error, "the setting `dark` is not a number");
            Err(Error::Invalid)
        }
    }
}

/// Once, before the first frame: what is wrong with a setting is said now.
fn init() -> Result<()> {
    dark().map(|_| ())
}

/// For every frame.
fn handle() -> Result<()> {
    let mut samples = [0; 16 * 16]; // the host decodes and shrinks the picture: natively, and once for all handlers
    let length = frame()?.pixels(None, Format::Gray, 16, 16, &mut samples)?;
    let sum: u32 = samples[..length].iter().map(|sample| u32::from(*sample)).sum();
    let brightness = f64::from(sum) / (255.0 * length as f64);

    let mut buffer = [0; 64];
    let mut out = Writer::new(&mut buffer);
    out.map(2);
    out.text("brightness");
    out.decimal(brightness, 3);
    out.text("dark");
    out.bool(brightness < dark()?);
    emit(0x20, Format::Cbor, out.finish()?)
}

appliance::handler!(handle, init = init);
