//! The appliance's native handler ABI, safely: the current frame, models, results, settings and state.
//!
//! ```ignore
//! #![no_std]
//! use appliance::{cbor::Writer, emit, Fit, Format, Model, Result};
//!
//! fn handle() -> Result<()> {
//!     let model = Model::open("parts")?;
//!     model.infer_frame(None, Fit::Stretch)?;
//!     let mut scores = [0.0; 4];
//!     model.output_f32(0, 0, &mut scores)?;
//!     let mut buffer = [0; 64];
//!     let mut out = Writer::new(&mut buffer);
//!     out.map(1);
//!     out.text("ok");
//!     out.decimal(scores[0].into(), 4);
//!     emit(0x10, Format::Cbor, out.finish()?)
//! }
//! appliance::handler!(handle);
//! ```
//!
//! There is no heap and no dependency; the caller owns every buffer. `docs/handler-abi.md` says what each
//! function promises.
#![no_std]

mod abi;
pub mod cbor;

/// Why a call failed. Returned from `handle`, it becomes the code that the appliance logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// A bad argument, or input that makes no sense.
    Invalid,
    /// No such model, output, label or key.
    NotFound,
    /// Over a limit, or the buffer is too small.
    TooBig,
    /// The manifest does not allow it.
    Denied,
    /// The model failed, or is not there just now.
    Model,
    /// There is no frame, it is not a picture, or it cannot be decoded.
    Frame,
    /// A code that this version does not know.
    Other(i32),
}

pub type Result<T> = core::result::Result<T, Error>;

impl Error {
    /// The code of the ABI, never 0.
    pub fn code(self) -> i32 {
        match self {
            Error::Invalid => -1,
            Error::NotFound => -2,
            Error::TooBig => -3,
            Error::Denied => -4,
            Error::Model => -5,
            Error::Frame => -6,
            Error::Other(0) => -1,
            Error::Other(code) => code,
        }
    }

    fn from_code(code: i32) -> Error {
        match code {
            -1 => Error::Invalid,
            -2 => Error::NotFound,
            -3 => Error::TooBig,
            -4 => Error::Denied,
            -5 => Error::Model,
            -6 => Error::Frame,
            other => Error::Other(other),
        }
    }
}

/// A count of at most `limit`; a host that claims to have written more is not believed.
fn counted(status: i32, limit: usize) -> Result<usize> {
    match usize::try_from(status) {
        Ok(count) if count <= limit => Ok(count),
        Ok(_) => Err(Error::Other(status)),
        Err(_) => Err(Error::from_code(status)),
    }
}

fn done(status: i32) -> Result<()> {
    if status < 0 {
        Err(Error::from_code(status))
    } else {
        Ok(())
    }
}

fn size(bytes: &[u8]) -> u32 {
    bytes.len() as u32
}

fn text(bytes: &[u8]) -> Result<&str> {
    core::str::from_utf8(bytes).map_err(|_| Error::Invalid)
}

/// What a payload holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Format {
    Jpeg = 1,
    Rgb = 2,
    Gray = 3,
    Cbor = 4,
    Json = 5,
    Bytes = 6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Level {
    Debug = 10,
    Info = 20,
    Warning = 30,
    Error = 40,
}

/// How a picture is brought to the size of a model's input: `Letterbox` keeps its proportions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fit {
    Stretch = 0,
    Letterbox = 1,
}

/// A part of the picture, in its pixels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Crop {
    pub x: i32,
    pub y: i32,
    pub width: i32,
    pub height: i32,
}

fn pointer(crop: Option<&Crop>) -> *const Crop {
    crop.map_or(core::ptr::null(), |crop| crop)
}

// --- the current frame ---

/// The current frame's header, as the host writes it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct FrameInfo {
    /// Number the source gave, from 0.
    pub seq: u64,
    /// Wall clock at capture, nanoseconds since 1970.
    pub captured_ns: u64,
    pub tag: u32,
    /// One of the values of [`Format`].
    pub format: u32,
    /// Pixels; 0 for data.
    pub width: u32,
    pub height: u32,
    /// Bytes of the payload.
    pub length: u32,
    reserved: u32,
}

/// The frame being handled.
pub fn frame() -> Result<FrameInfo> {
    let mut info = FrameInfo::default();
    // SAFETY: `info` has the layout of the ABI and outlives the call.
    done(unsafe { abi::frame_info(&mut info) })?;
    Ok(info)
}

impl FrameInfo {
    pub fn is(&self, format: Format) -> bool {
        self.format == format as u32
    }

    /// Name of the frame's source; 64 bytes hold any.
    pub fn source<'a>(&self, buffer: &'a mut [u8]) -> Result<&'a str> {
        // SAFETY: the host writes at most the buffer's length.
        let length = counted(unsafe { abi::frame_source(buffer.as_mut_ptr(), size(buffer)) }, buffer.len())?;
        text(&buffer[..length])
    }

    /// Copy payload bytes from `offset`; how many, 0 at the end.
    pub fn read(&self, offset: u32, buffer: &mut [u8]) -> Result<usize> {
        // SAFETY: as above.
        counted(unsafe { abi::frame_read(offset, buffer.as_mut_ptr(), size(buffer)) }, buffer.len())
    }

    /// The whole payload, where the buffer holds it.
    pub fn payload<'a>(&self, buffer: &'a mut [u8]) -> Result<&'a [u8]> {
        if self.length as usize > buffer.len() {
            return Err(Error::TooBig);
        }
        let length = self.read(0, buffer)?;
        Ok(&buffer[..length])
    }

    /// Decode (part of) the picture into width x height samples of `Format::Rgb` or `Format::Gray`; bytes written.
    pub fn pixels(
        &self,
        crop: Option<&Crop>,
        format: Format,
        width: u32,
        height: u32,
        buffer: &mut [u8],
    ) -> Result<usize> {
        // SAFETY: as above; the crop outlives the call.
        let status = unsafe {
            abi::frame_pixels(pointer(crop), format as u32, width, height, buffer.as_mut_ptr(), size(buffer))
        };
        counted(status, buffer.len())
    }
}

// --- models ---

/// One input or output of a model, as the host writes it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Tensor {
    /// 1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 6 f16, 7 f32, 8 f64, 9 bool.
    pub dtype: u32,
    pub rank: u32,
    /// Unused dimensions are 0.
    pub shape: [u32; 8],
    pub bytes: u32,
    pub elements: u32,
    /// real = scale * (stored - zero_point); 0 where the tensor is not quantised.
    pub scale: f32,
    pub zero_point: i32,
}

/// A model that the manifest names.
#[derive(Clone, Copy, Debug)]
pub struct Model(i32);

impl Model {
    pub fn open(name: &str) -> Result<Model> {
        // SAFETY: the host only reads the name.
        let handle = unsafe { abi::model(name.as_ptr(), size(name.as_bytes())) };
        done(handle)?;
        Ok(Model(handle))
    }

    pub fn input(&self, index: u32) -> Result<Tensor> {
        let mut tensor = Tensor::default();
        // SAFETY: `tensor` has the layout of the ABI and outlives the call.
        done(unsafe { abi::model_input(self.0, index, &mut tensor) })?;
        Ok(tensor)
    }

    pub fn output(&self, index: u32) -> Result<Tensor> {
        let mut tensor = Tensor::default();
        // SAFETY: as above.
        done(unsafe { abi::model_output(self.0, index, &mut tensor) })?;
        Ok(tensor)
    }

    /// Index of the output with this name.
    pub fn output_named(&self, name: &str) -> Result<u32> {
        // SAFETY: the host only reads the name.
        let index = unsafe { abi::model_output_named(self.0, name.as_ptr(), size(name.as_bytes())) };
        u32::try_from(index).map_err(|_| Error::from_code(index))
    }

    /// Label of a class, in the caller's buffer.
    pub fn label<'a>(&self, index: u32, buffer: &'a mut [u8]) -> Result<&'a str> {
        // SAFETY: the host writes at most the buffer's length.
        let status = unsafe { abi::model_label(self.0, index, buffer.as_mut_ptr(), size(buffer)) };
        let length = counted(status, buffer.len())?;
        text(&buffer[..length])
    }

    /// Run on the current picture or a part of it; the outputs are then there to read.
    pub fn infer_frame(&self, crop: Option<&Crop>, fit: Fit) -> Result<()> {
        // SAFETY: the crop outlives the call.
        done(unsafe { abi::infer_frame(self.0, pointer(crop), fit as u32) })
    }

    /// Run on the bytes of all inputs, one after the other.
    pub fn infer_tensor(&self, data: &[u8]) -> Result<()> {
        // SAFETY: the host only reads the data.
        done(unsafe { abi::infer_tensor(self.0, data.as_ptr(), size(data)) })
    }

    /// Raw bytes of an output from byte `offset`; how many.
    pub fn output_read(&self, index: u32, offset: u32, buffer: &mut [u8]) -> Result<usize> {
        // SAFETY: the host writes at most the buffer's length.
        let status = unsafe { abi::output_read(self.0, index, offset, buffer.as_mut_ptr(), size(buffer)) };
        counted(status, buffer.len())
    }

    /// An output as real numbers from element `start`; how many.
    pub fn output_f32(&self, index: u32, start: u32, values: &mut [f32]) -> Result<usize> {
        // SAFETY: the host writes at most so many floats.
        let status = unsafe { abi::output_f32(self.0, index, start, values.as_mut_ptr(), values.len() as u32) };
        counted(status, values.len())
    }
}

// --- results, settings, state ---

/// Emit a frame about the current one, with a tag that the manifest allows.
pub fn emit(tag: u32, format: Format, payload: &[u8]) -> Result<()> {
    // SAFETY: the host copies the payload before it returns.
    done(unsafe { abi::emit(tag, format as u32, payload.as_ptr(), size(payload)) })
}

/// A line in the appliance's log. One that the host does not take is lost: there is nowhere to say so.
pub fn log(level: Level, line: &str) {
    // SAFETY: the host only reads the text.
    unsafe { abi::log(level as u32, line.as_ptr(), size(line.as_bytes())) };
}

/// Monotonic nanoseconds since an arbitrary start.
pub fn now_ns() -> i64 {
    // SAFETY: no arguments.
    unsafe { abi::now_ns() }
}

/// None where the call answered "no such thing".
fn optional<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A setting from the manifest or the operator, in the caller's buffer.
pub fn setting<'a>(key: &str, buffer: &'a mut [u8]) -> Result<Option<&'a str>> {
    // SAFETY: the host writes at most the buffer's length.
    let status = unsafe { abi::setting(key.as_ptr(), size(key.as_bytes()), buffer.as_mut_ptr(), size(buffer)) };
    match optional(counted(status, buffer.len()))? {
        Some(length) => text(&buffer[..length]).map(Some),
        None => Ok(None),
    }
}

/// Small values that outlive a restart; changes take effect when `handle` succeeds.
pub mod state {
    use super::{abi, counted, done, optional, size, Result};

    /// The value of a key, in the caller's buffer; 4096 bytes hold any.
    pub fn get<'a>(key: &str, buffer: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
        // SAFETY: the host writes at most the buffer's length.
        let status = unsafe { abi::state_get(key.as_ptr(), size(key.as_bytes()), buffer.as_mut_ptr(), size(buffer)) };
        let length = optional(counted(status, buffer.len()))?;
        Ok(length.map(|length| &buffer[..length]))
    }

    /// Set a key; an empty value deletes it.
    pub fn set(key: &str, value: &[u8]) -> Result<()> {
        // SAFETY: the host only reads key and value.
        done(unsafe { abi::state_set(key.as_ptr(), size(key.as_bytes()), value.as_ptr(), size(value)) })
    }
}

// --- what the module exports ---

/// Export `handle`, and `init` where one is given; both are `fn() -> appliance::Result<()>`.
#[macro_export]
macro_rules! handler {
    ($handle:path) => {
        #[export_name = "handle"]
        pub extern "C" fn appliance_exported_handle() -> i32 {
            let outcome: $crate::Result<()> = $handle();
            outcome.err().map_or(0, $crate::Error::code)
        }
    };
    ($handle:path, init = $init:path) => {
        $crate::handler!($handle);
        #[export_name = "init"]
        pub extern "C" fn appliance_exported_init() -> i32 {
            let outcome: $crate::Result<()> = $init();
            outcome.err().map_or(0, $crate::Error::code)
        }
    };
}

/// A panic is a trap; the line before it in the log says where: formatting its message would triple the module.
#[cfg(all(target_arch = "wasm32", not(feature = "std")))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    if let Some(place) = info.location() {
        log(Level::Error, "panicked in this file, at this line:");
        log(Level::Error, place.file());
        let mut digits = [b'0'; 10];
        let mut line = place.line();
        for digit in digits.iter_mut().rev() {
            *digit += (line % 10) as u8;
            line /= 10;
        }
        log(Level::Error, text(&digits).unwrap_or(""));
    }
    core::arch::wasm32::unreachable()
}
