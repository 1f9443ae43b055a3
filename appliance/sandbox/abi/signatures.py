"""Every function a guest may import, by module: the only list of them. Pure, so that admission can read it, too.

wasm3's notation, result first: ``i`` i32, ``I`` i64, ``v`` none; ``I(ii)`` is (i32, i32) -> i64.
"""

from collections.abc import Mapping

NATIVE: Mapping[str, str] = {
    "frame_info": "i(i)",
    "frame_source": "i(ii)",
    "frame_read": "i(iii)",
    "frame_pixels": "i(iiiiii)",
    "model": "i(ii)",
    "model_input": "i(iii)",
    "model_output": "i(iii)",
    "model_output_named": "i(iii)",
    "model_label": "i(iiii)",
    "infer_frame": "i(iii)",
    "infer_tensor": "i(iii)",
    "output_read": "i(iiiii)",
    "output_f32": "i(iiiii)",
    "emit": "i(iiii)",
    "log": "i(iii)",
    "now_ns": "I()",
    "setting": "i(iiii)",
    "state_get": "i(iiii)",
    "state_set": "i(iiii)",
}
"""``appliance/author/sdk/c/appliance.h``."""

WASI_EPHEMERAL_NN: Mapping[str, str] = {
    "load": "i(iiiii)",
    "load_by_name": "i(iii)",
    "init_execution_context": "i(ii)",
    "set_input": "i(iii)",
    "compute": "i(i)",
    "get_output": "i(iiiii)",
    # WasmEdge's own
    "load_by_name_with_config": "i(iiiii)",
    "get_output_single": "i(iiiii)",
    "compute_single": "i(i)",
    "fini_single": "i(i)",
    "unload": "i(i)",
    "finalize_execution_context": "i(i)",
}
"""wasi-nn, preview-1 style: crate ``wasi-nn`` up to 0.6."""

WASI_NN: Mapping[str, str] = {
    "load": "i(iiii)",
    "init_execution_context": "i(ii)",
    "set_input": "i(iii)",
    "compute": "i(i)",
    "get_output": "i(iiii)",
}
"""WAMR's older wasi-nn."""

WASMEDGE_TENSORFLOWLITE: Mapping[str, str] = {
    # crate wasmedge_tensorflow_interface 0.2
    "wasmedge_tensorflowlite_create_session": "I(ii)",
    "wasmedge_tensorflowlite_append_input": "v(Iiiii)",
    "wasmedge_tensorflowlite_run_session": "i(I)",
    "wasmedge_tensorflowlite_get_output_tensor": "I(Iii)",
    "wasmedge_tensorflowlite_get_tensor_len": "i(I)",
    "wasmedge_tensorflowlite_get_tensor_data": "v(Ii)",
    "wasmedge_tensorflowlite_delete_session": "v(I)",
    # 0.3
    "create_session": "i(iii)",
    "append_input": "i(iiiii)",
    "run_session": "i(i)",
    "get_output_tensor": "i(iiii)",
    "get_tensor_len": "i(iii)",
    "get_tensor_data": "i(iiiii)",  # the published crate has a fifth: where the number of bytes is written
    "delete_session": "i(i)",
}

WASMEDGE_IMAGE: Mapping[str, str] = {
    # 0.2
    **{
        f"wasmedge_image_load_{codec}_to_{layout}": "i(iiiii)"
        for codec in ("jpg", "png")
        for layout in ("rgb8", "bgr8", "rgb32f", "bgr32f")
    },
    # 0.3
    "load_jpg": "i(iiiiiii)",
    "load_png": "i(iiiiiii)",
    "load_image": "i(iiiiiii)",
}

WASMEDGE_TENSORFLOW: Mapping[str, str] = {
    "wasmedge_tensorflow_create_session": "I(ii)",
    "wasmedge_tensorflow_delete_session": "v(I)",
    "wasmedge_tensorflow_run_session": "i(I)",
    "wasmedge_tensorflow_get_output_tensor": "I(Iiii)",
    "wasmedge_tensorflow_get_tensor_len": "i(I)",
    "wasmedge_tensorflow_get_tensor_data": "v(Ii)",
    "wasmedge_tensorflow_append_input": "v(Iiiiiiiii)",
    "wasmedge_tensorflow_append_output": "v(Iiii)",
    "wasmedge_tensorflow_clear_input": "v(I)",
    "wasmedge_tensorflow_clear_output": "v(I)",
}
"""Must resolve and is never called for TFLite: the crate branches at run time."""

YOMO: Mapping[str, str] = {
    "yomo_observe_datatag": "v(i)",
    "yomo_write": "i(iii)",
    "yomo_context_tag": "i()",
    "yomo_context_data": "i(ii)",
    "yomo_context_data_size": "i()",
}
"""YoMo v1's stream functions."""

WASI: Mapping[str, str] = {
    "args_get": "i(ii)",
    "args_sizes_get": "i(ii)",
    "environ_get": "i(ii)",
    "environ_sizes_get": "i(ii)",
    "clock_res_get": "i(ii)",
    "clock_time_get": "i(iIi)",
    "fd_advise": "i(iIIi)",
    "fd_allocate": "i(iII)",
    "fd_close": "i(i)",
    "fd_datasync": "i(i)",
    "fd_fdstat_get": "i(ii)",
    "fd_fdstat_set_flags": "i(ii)",
    "fd_fdstat_set_rights": "i(iII)",
    "fd_filestat_get": "i(ii)",
    "fd_filestat_set_size": "i(iI)",
    "fd_filestat_set_times": "i(iIIi)",
    "fd_pread": "i(iiiIi)",
    "fd_prestat_get": "i(ii)",
    "fd_prestat_dir_name": "i(iii)",
    "fd_pwrite": "i(iiiIi)",
    "fd_read": "i(iiii)",
    "fd_readdir": "i(iiiIi)",
    "fd_renumber": "i(ii)",
    "fd_seek": "i(iIii)",
    "fd_sync": "i(i)",
    "fd_tell": "i(ii)",
    "fd_write": "i(iiii)",
    "path_create_directory": "i(iii)",
    "path_filestat_get": "i(iiiii)",
    "path_filestat_set_times": "i(iiiiIIi)",
    "path_link": "i(iiiiiii)",
    "path_open": "i(iiiiiIIii)",
    "path_readlink": "i(iiiiii)",
    "path_remove_directory": "i(iii)",
    "path_rename": "i(iiiiii)",
    "path_symlink": "i(iiiii)",
    "path_unlink_file": "i(iii)",
    "poll_oneoff": "i(iiii)",
    "proc_exit": "v(i)",
    "proc_raise": "i(i)",
    "random_get": "i(ii)",
    "sched_yield": "i()",
    "sock_accept": "i(iii)",
    "sock_recv": "i(iiiiii)",
    "sock_send": "i(iiiii)",
    "sock_shutdown": "i(ii)",
}
"""WASI preview 1, all of it, so that what is linked and never called resolves; most of it answers ``badf``."""

SIGNATURES: Mapping[str, Mapping[str, str]] = {
    "appliance": NATIVE,
    "wasi_ephemeral_nn": WASI_EPHEMERAL_NN,
    "wasi_nn": WASI_NN,
    "wasmedge_tensorflowlite": WASMEDGE_TENSORFLOWLITE,
    "wasmedge_image": WASMEDGE_IMAGE,
    "wasmedge_tensorflow": WASMEDGE_TENSORFLOW,
    "env": YOMO,
    "wasi_snapshot_preview1": WASI,
}
"""Import module -> function -> signature."""
