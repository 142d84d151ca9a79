//! Every merge method, written from its formula in plain `f64`, as slow and as obvious as possible.
//!
//! Models are whole tensors (`&[f64]`); `deltas` are task vectors x_i − base. Nothing is chunked, nothing is fused.
