/* The imports as they are; docs/handler-abi.md is their text of record. Pointers and lengths are usize and u32. */

@external("appliance", "frame_info")
export declare function frame_info(out: usize): i32;
@external("appliance", "frame_source")
export declare function frame_source(out: usize, capacity: u32): i32;
@external("appliance", "frame_read")
export declare function frame_read(offset: u32, out: usize, capacity: u32): i32;
@external("appliance", "frame_pixels")
export declare function frame_pixels(crop: usize, format: u32, width: u32, height: u32, out: usize, capacity: u32): i32;
@external("appliance", "model")
export declare function model(name: usize, length: u32): i32;
@external("appliance", "model_input")
export declare function model_input(model: i32, index: u32, out: usize): i32;
@external("appliance", "model_output")
export declare function model_output(model: i32, index: u32, out: usize): i32;
@external("appliance", "model_output_named")
export declare function model_output_named(model: i32, name: usize, length: u32): i32;
@external("appliance", "model_label")
export declare function model_label(model: i32, index: u32, out: usize, capacity: u32): i32;
@external("appliance", "infer_frame")
export declare function infer_frame(model: i32, crop: usize, fit: u32): i32;
@external("appliance", "infer_tensor")
export declare function infer_tensor(model: i32, data: usize, length: u32): i32;
@external("appliance", "output_read")
export declare function output_read(model: i32, index: u32, offset: u32, out: usize, capacity: u32): i32;
@external("appliance", "output_f32")
export declare function output_f32(model: i32, index: u32, start: u32, out: usize, count: u32): i32;
@external("appliance", "emit")
export declare function emit(tag: u32, format: u32, data: usize, length: u32): i32;
@external("appliance", "log")
export declare function log(level: u32, text: usize, length: u32): i32;
@external("appliance", "now_ns")
export declare function now_ns(): i64;
@external("appliance", "setting")
export declare function setting(key: usize, key_length: u32, out: usize, capacity: u32): i32;
@external("appliance", "state_get")
export declare function state_get(key: usize, key_length: u32, out: usize, capacity: u32): i32;
@external("appliance", "state_set")
export declare function state_set(key: usize, key_length: u32, value: usize, length: u32): i32;
