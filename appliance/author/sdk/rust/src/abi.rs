//! The imports as they are; `docs/handler-abi.md` is their text of record.

use crate::{Crop, FrameInfo, Tensor};

#[link(wasm_import_module = "appliance")]
extern "C" {
    pub fn frame_info(out: *mut FrameInfo) -> i32;
    pub fn frame_source(out: *mut u8, capacity: u32) -> i32;
    pub fn frame_read(offset: u32, out: *mut u8, capacity: u32) -> i32;
    pub fn frame_pixels(crop: *const Crop, format: u32, width: u32, height: u32, out: *mut u8, capacity: u32) -> i32;
    pub fn model(name: *const u8, length: u32) -> i32;
    pub fn model_input(model: i32, index: u32, out: *mut Tensor) -> i32;
    pub fn model_output(model: i32, index: u32, out: *mut Tensor) -> i32;
    pub fn model_output_named(model: i32, name: *const u8, length: u32) -> i32;
    pub fn model_label(model: i32, index: u32, out: *mut u8, capacity: u32) -> i32;
    pub fn infer_frame(model: i32, crop: *const Crop, fit: u32) -> i32;
    pub fn infer_tensor(model: i32, data: *const u8, length: u32) -> i32;
    pub fn output_read(model: i32, index: u32, offset: u32, out: *mut u8, capacity: u32) -> i32;
    pub fn output_f32(model: i32, index: u32, start: u32, out: *mut f32, count: u32) -> i32;
    pub fn emit(tag: u32, format: u32, data: *const u8, length: u32) -> i32;
    pub fn log(level: u32, text: *const u8, length: u32) -> i32;
    pub fn now_ns() -> i64;
    pub fn setting(key: *const u8, key_length: u32, out: *mut u8, capacity: u32) -> i32;
    pub fn state_get(key: *const u8, key_length: u32, out: *mut u8, capacity: u32) -> i32;
    pub fn state_set(key: *const u8, key_length: u32, value: *const u8, length: u32) -> i32;
}
