//! Classifies each frame by wasi-nn with a model of its own, as a guest of the crate `wasi-nn` does. Emits raw scores.
#![no_std]

use appliance::{emit, frame, Error, Format, Result};

include!("model.rs");
static MODEL: &[u8] = include_bytes!("model.tflite");

mod nn {
    #[repr(C)]
    pub struct Builder {
        pub data: *const u8,
        pub length: usize,
    }

    #[repr(C)]
    pub struct Tensor {
        pub sides: *const u32,
        pub rank: usize,
        pub kind: u8,
        pub data: *const u8,
        pub length: usize,
    }

    #[link(wasm_import_module = "wasi_ephemeral_nn")]
    extern "C" {
        pub fn load(builders: *const Builder, count: usize, encoding: i32, target: i32, graph: *mut u32) -> i32;
        pub fn init_execution_context(graph: u32, context: *mut u32) -> i32;
        pub fn set_input(context: u32, index: u32, tensor: *const Tensor) -> i32;
        pub fn compute(context: u32) -> i32;
        pub fn get_output(context: u32, index: u32, out: *mut u8, capacity: usize, written: *mut usize) -> i32;
    }
}

const TFLITE: i32 = 4;
const CPU: i32 = 0;
const U8: u8 = 2;

fn checked(errno: i32) -> Result<()> {
    if errno == 0 {
        Ok(())
    } else {
        Err(Error::Model)
    }
}

static mut PICTURE: [u8; SIDE * SIDE * 3] = [0; SIDE * SIDE * 3];
static mut SCORES: [u8; CLASSES] = [0; CLASSES];

fn handle() -> Result<()> {
    // There is one thread, and no other function touches these.
    let (picture, scores) = unsafe { (&mut PICTURE, &mut SCORES) };
    frame()?.pixels(None, Format::Rgb, SIDE as u32, SIDE as u32, picture)?;
    let builder = nn::Builder { data: MODEL.as_ptr(), length: MODEL.len() };
    let sides = [1, SIDE as u32, SIDE as u32, 3];
    let tensor = nn::Tensor { sides: sides.as_ptr(), rank: 4, kind: U8, data: picture.as_ptr(), length: picture.len() };
    let (mut graph, mut context, mut written) = (0, 0, 0);
    unsafe {
        checked(nn::load(&builder, 1, TFLITE, CPU, &mut graph))?;
        checked(nn::init_execution_context(graph, &mut context))?;
        checked(nn::set_input(context, 0, &tensor))?;
        checked(nn::compute(context))?;
        checked(nn::get_output(context, 0, scores.as_mut_ptr(), scores.len(), &mut written))?;
    }
    emit(0x10, Format::Bytes, &scores[..written])
}

appliance::handler!(handle);
