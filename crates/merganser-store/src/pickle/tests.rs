#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::fixtures::{Form, Pickle, TensorSpec, checkpoint, dict, legacy, zip};
use super::*;

const F32_2X3: TensorSpec<'_> = TensorSpec {
    class: "FloatStorage",
    key: "0",
    numel: 6,
    offset: 0,
    shape: &[2, 3],
    strides: &[3, 1],
};

fn one_tensor(tensor: &TensorSpec<'_>) -> Pickle {
    dict(&[("w", &|p| p.tensor(tensor))])
}

fn parse_one(tensor: &TensorSpec<'_>, storage: &[u8]) -> Result<TorchTensor, PickleError> {
    parse(&checkpoint(one_tensor(tensor), &[(tensor.key, storage)])[..])
        .map(|mut file| file.tensors.remove(0))
}

fn refusal(bytes: &[u8]) -> String {
    parse(bytes).unwrap_err().to_string()
}

#[test]
fn a_tensor_is_found_at_its_place_in_the_file() {
    let storage: Vec<u8> = (0..24).collect();
    for form in [Form::Plain, Form::Zip64] {
        let structure = one_tensor(&F32_2X3).stop();
        let file = zip(&[("m/data.pkl", &structure), ("m/data/0", &storage)], form);
        let found = parse(&file[..]).unwrap().tensors.remove(0);
        assert_eq!(
            (
                found.name.as_str(),
                found.dtype,
                &found.shape[..],
                found.nbytes
            ),
            ("w", Dtype::F32, &[2, 3][..], 24)
        );
        assert_eq!(&file[found.offset as usize..][..24], storage);
        assert_eq!(found.offset % 64, 0);
    }
}

#[test]
fn tensors_may_share_a_storage_and_begin_inside_it() {
    let storage: Vec<u8> = (0..24).collect();
    let pickle = dict(&[
        ("all", &|p| p.tensor(&F32_2X3)),
        ("row", &|p| {
            p.tensor(&TensorSpec {
                offset: 3,
                shape: &[3],
                strides: &[1],
                ..F32_2X3
            })
        }),
        ("transposed", &|p| {
            p.tensor(&TensorSpec {
                shape: &[3, 2],
                strides: &[1, 3],
                ..F32_2X3
            })
        }),
        ("scalar", &|p| {
            p.tensor(&TensorSpec {
                offset: 5,
                shape: &[],
                strides: &[],
                ..F32_2X3
            })
        }),
        ("empty", &|p| {
            p.tensor(&TensorSpec {
                shape: &[0, 7],
                strides: &[7, 1],
                ..F32_2X3
            })
        }),
    ]);
    let tensors = parse(&checkpoint(pickle, &[("0", &storage)])[..])
        .unwrap()
        .tensors;
    let start = tensors[0].offset;
    let found: Vec<_> = tensors
        .iter()
        .map(|t| (t.name.as_str(), t.offset - start, t.nbytes))
        .collect();
    assert_eq!(
        found,
        [
            ("all", 0, 24),
            ("row", 12, 12),
            ("transposed", 0, 24),
            ("scalar", 20, 4),
            ("empty", 0, 0)
        ]
    );
}

#[test]
fn the_digest_covers_structure_and_data_checksums() {
    let file = checkpoint(one_tensor(&F32_2X3), &[("0", &[0; 24])]);
    let digest = parse(&file[..]).unwrap().digest;
    let other = checkpoint(
        one_tensor(&TensorSpec {
            shape: &[6],
            strides: &[1],
            ..F32_2X3
        }),
        &[("0", &[0; 24])],
    );
    assert_ne!(parse(&other[..]).unwrap().digest, digest);
    // The CRC in the directory stands for the data.
    let mut changed = file.clone();
    let entry = changed
        .windows(4)
        .rposition(|window| window == b"PK\x01\x02")
        .unwrap();
    changed[entry + 16] ^= 1;
    assert_ne!(parse(&changed[..]).unwrap().digest, digest);
}

#[test]
fn every_typed_storage_is_known() {
    for (class, dtype) in [
        ("DoubleStorage", Dtype::F64),
        ("FloatStorage", Dtype::F32),
        ("HalfStorage", Dtype::F16),
        ("BFloat16Storage", Dtype::BF16),
        ("LongStorage", Dtype::I64),
        ("IntStorage", Dtype::I32),
        ("ShortStorage", Dtype::I16),
        ("CharStorage", Dtype::I8),
        ("ByteStorage", Dtype::U8),
        ("BoolStorage", Dtype::Bool),
    ] {
        let spec = TensorSpec { class, ..F32_2X3 };
        assert_eq!(
            parse_one(&spec, &vec![0; 6 * dtype.size()]).unwrap().dtype,
            dtype
        );
    }
    let unsupported = parse_one(
        &TensorSpec {
            class: "ComplexFloatStorage",
            ..F32_2X3
        },
        &[0; 48],
    )
    .unwrap_err();
    assert!(
        unsupported
            .to_string()
            .contains("`torch.ComplexFloatStorage`")
    );
}

#[test]
fn new_dtypes_come_on_untyped_storages() {
    let spec = TensorSpec {
        class: "UntypedStorage",
        ..F32_2X3
    };
    for (name, dtype) in [("float8_e4m3fn", Dtype::F8E4M3), ("uint8", Dtype::U8)] {
        let file = checkpoint(
            dict(&[("w", &|p| p.tensor_v3(&spec, name))]),
            &[("0", &[0; 6])],
        );
        assert_eq!(parse(&file[..]).unwrap().tensors[0].dtype, dtype);
    }
    let untyped = checkpoint(dict(&[("w", &|p| p.tensor(&spec))]), &[("0", &[0; 6])]);
    assert!(refusal(&untyped).contains("has no dtype"));
}

#[test]
fn parameters_and_attributes_of_a_state_dict_are_seen_through() {
    // An OrderedDict with a `_metadata` attribute, holding a Parameter: what `model.state_dict()`
    // and `torch.save(dict(model.named_parameters()))` give.
    let pickle = Pickle::new()
        .ordered_dict()
        .op(b'(')
        .str("w")
        .global("torch._utils", "_rebuild_parameter")
        .op(b'(')
        .tensor(&F32_2X3)
        .op(0x88)
        .ordered_dict()
        .raw(b"tRu}(")
        .str("_metadata")
        .ordered_dict()
        .raw(b"ub");
    let file = parse(&checkpoint(pickle, &[("0", &[0; 24])])[..]).unwrap();
    assert_eq!((file.tensors.len(), file.ignored.len()), (1, 0));
}

#[test]
fn wrappers_are_opened_and_other_entries_listed() {
    let pickle = Pickle::new()
        .raw(b"}(")
        .str("epoch")
        .int(3)
        .str("model")
        .raw(b"}(")
        .str("state_dict")
        .raw(b"}(")
        .str("w")
        .tensor(&F32_2X3)
        .str("step")
        .int(7)
        .int(5)
        .op(b'N')
        .raw(b"u")
        .raw(b"u")
        .raw(b"u");
    let file = parse(&checkpoint(pickle, &[("0", &[0; 24])])[..]).unwrap();
    assert_eq!(file.tensors[0].name, "w");
    assert_eq!(
        file.ignored,
        ["step (int)", "(key that is not a string) (None)"]
    );

    let none = checkpoint(
        dict(&[("optimizer", &|p| p.op(b'}')), ("epoch", &|p| p.int(1))]),
        &[],
    );
    assert!(
        refusal(&none).ends_with("it holds no tensors by name: its keys are `optimizer`, `epoch`")
    );
    let list = checkpoint(Pickle::new().op(b']'), &[]);
    assert!(refusal(&list).ends_with("it is a list or tuple"));
}

#[test]
fn the_last_value_of_a_key_counts() {
    let second = TensorSpec {
        shape: &[1],
        strides: &[1],
        ..F32_2X3
    };
    let pickle = dict(&[
        ("w", &|p| p.tensor(&F32_2X3)),
        ("w", &|p| p.tensor(&second)),
    ]);
    let tensors = parse(&checkpoint(pickle, &[("0", &[0; 24])])[..])
        .unwrap()
        .tensors;
    assert_eq!((tensors.len(), &tensors[0].shape[..]), (1, &[1][..]));
}

#[test]
fn code_is_refused_by_name_wherever_it_hides() {
    let attacks: [(&str, Pickle); 5] = [
        (
            "os.system",
            dict(&[("w", &|p| {
                p.global("os", "system").op(b'(').str("true").raw(b"tR")
            })]),
        ),
        (
            "posix.system",
            Pickle::new()
                .str("posix")
                .str("system")
                .op(0x93)
                .str("true")
                .op(0x85)
                .op(b'R'),
        ),
        (
            "builtins.eval",
            Pickle::new()
                .global("builtins", "eval")
                .op(b'(')
                .str("1")
                .raw(b"tR"),
        ),
        ("torch.load", Pickle::new().global("torch", "load")),
        // Names that Python would resolve through attributes.
        (
            "torch.FloatStorage.__class__",
            Pickle::new().global("torch", "FloatStorage.__class__"),
        ),
    ];
    for (name, pickle) in attacks {
        let message = refusal(&checkpoint(pickle.clone(), &[]));
        assert!(
            message.contains(&format!("`{name}`")) && message.contains("nothing was executed"),
            "{message}"
        );
        let message = refusal(&legacy(pickle, true, &[]));
        assert!(message.contains(&format!("`{name}`")), "{message}");
    }
    // INST, OBJ, EXT1 and PERSID would call or import too.
    for opcode in [b'i', b'o', 0x82, b'P', 0x92] {
        let message = refusal(&checkpoint(Pickle::new().op(opcode), &[]));
        assert!(
            message.contains(&format!("{opcode:#04x} at byte 2")),
            "{message}"
        );
    }
}

#[test]
fn a_tensor_must_lie_inside_its_storage() {
    for spec in [
        TensorSpec {
            offset: 1,
            ..F32_2X3
        },
        TensorSpec {
            strides: &[4, 1],
            ..F32_2X3
        },
        TensorSpec {
            numel: 5,
            ..F32_2X3
        },
        TensorSpec {
            numel: 700,
            shape: &[7],
            strides: &[1],
            ..F32_2X3
        },
        TensorSpec {
            strides: &[i32::MAX, i32::MAX],
            ..F32_2X3
        },
    ] {
        let error = parse_one(&spec, &[0; 24]).unwrap_err();
        assert!(matches!(error, PickleError::Bounds { .. }), "{error}");
    }
    let missing = refusal(&checkpoint(one_tensor(&F32_2X3), &[]));
    assert!(
        missing.contains("tensor `w` needs 24 bytes of storage `0`, which has 0"),
        "{missing}"
    );
    for spec in [
        TensorSpec {
            offset: -1,
            ..F32_2X3
        },
        TensorSpec {
            shape: &[2, -3],
            ..F32_2X3
        },
        TensorSpec {
            strides: &[3],
            ..F32_2X3
        },
    ] {
        assert!(matches!(
            parse_one(&spec, &[0; 24]),
            Err(PickleError::Malformed { .. })
        ));
    }
}

#[test]
fn a_few_bytes_cannot_claim_all_memory() {
    let spec = TensorSpec {
        shape: &[1 << 20, 1 << 20],
        strides: &[0, 0],
        ..F32_2X3
    };
    assert!(matches!(
        parse_one(&spec, &[0; 24]),
        Err(PickleError::Repeated { stored: 4, .. })
    ));
    let overflow = TensorSpec {
        shape: &[i32::MAX, i32::MAX, i32::MAX],
        strides: &[0, 0, 0],
        ..F32_2X3
    };
    assert!(matches!(
        parse_one(&overflow, &[0; 24]),
        Err(PickleError::Overflow(_))
    ));
    // A string of 4 GB in a file of a few bytes.
    let long = Pickle::new().op(b'X').raw(&u32::MAX.to_le_bytes());
    assert!(matches!(
        parse(&checkpoint(long, &[])[..]),
        Err(PickleError::Truncated(_))
    ));
}

#[test]
fn self_reference_and_depth_do_no_harm() {
    let cycle = Pickle::new().raw(b"}q\x00(").str("model").raw(b"h\x00u");
    assert!(matches!(
        parse(&checkpoint(cycle, &[])[..]),
        Err(PickleError::NoTensors(_))
    ));
    let mut deep = Pickle::new();
    for _ in 0..1_000_000 {
        deep.0.push(b']');
    }
    for _ in 0..999_999 {
        deep.0.push(b'a');
    }
    assert!(matches!(
        parse(&checkpoint(deep, &[])[..]),
        Err(PickleError::NoTensors(_))
    ));
}

#[test]
fn endless_pickles_are_stopped() {
    let code = b"N0".repeat(machine::MAX_INSTRUCTIONS as usize / 2 + 1);
    let error = parse(&checkpoint(Pickle::new().raw(&code), &[])[..]).unwrap_err();
    assert!(matches!(error, PickleError::TooLong(_)), "{error}");
}

#[test]
fn archives_that_are_not_plain_checkpoints_are_refused_with_the_reason() {
    let structure = one_tensor(&F32_2X3).stop();
    let zipped = |extra: (&str, &[u8])| zip(&[("m/data.pkl", &structure), extra], Form::Plain);
    assert!(refusal(&zipped(("m/byteorder", b"big"))).contains("big-endian"));
    assert!(refusal(&zipped(("m/constants.pkl", b""))).contains("TorchScript"));
    assert!(refusal(&zip(&[("m/x", b"")], Form::Plain)).contains("without `data.pkl`"));

    let mut deflated = checkpoint(one_tensor(&F32_2X3), &[("0", &[0; 24])]);
    let entry = deflated
        .windows(4)
        .rposition(|window| window == b"PK\x01\x02")
        .unwrap();
    deflated[entry + 10] = 8;
    assert!(refusal(&deflated).contains("`m/data/0` in it is compressed"));
    assert!(refusal(b"version https://git-lfs.github.com/spec/v1").contains("git lfs pull"));
    assert!(refusal(b"hello world").contains("neither a zip archive nor a pickle"));
    assert!(refusal(b"").contains("neither"));
}

#[test]
fn the_legacy_format_is_read() {
    let storage: Vec<u8> = (0..24).collect();
    let other = TensorSpec {
        class: "HalfStorage",
        key: "7",
        numel: 2,
        shape: &[2],
        strides: &[1],
        ..F32_2X3
    };
    let view = TensorSpec {
        offset: 1,
        shape: &[2],
        strides: &[1],
        ..F32_2X3
    };
    let pickle = dict(&[
        ("w", &|p| p.tensor(&F32_2X3)),
        ("h", &|p| p.tensor(&other)),
        ("v", &|p| p.tensor_on_view(&view, 2, 3)),
    ]);
    let storages: [(&str, u64, &[u8]); 2] = [("7", 2, b"abcd"), ("0", 6, &storage)];
    let file = legacy(pickle.clone(), true, &storages);
    let tensors = parse(&file[..]).unwrap().tensors;
    let data = |i: usize| &file[tensors[i].offset as usize..][..tensors[i].nbytes as usize];
    assert_eq!(
        (data(0), data(1), data(2)),
        (&storage[..], &b"abcd"[..], &storage[12..20])
    );

    assert!(refusal(&legacy(pickle.clone(), false, &storages)).contains("big-endian"));
    assert!(matches!(
        parse(&file[..file.len() - 1]),
        Err(PickleError::Truncated(_))
    ));
    assert!(refusal(&one_tensor(&F32_2X3).stop()).contains("not one written by `torch.save`"));
    let beyond_view = dict(&[("v", &|p| p.tensor_on_view(&view, 4, 2))]);
    assert!(matches!(
        parse(&legacy(beyond_view, true, &storages[1..])[..]),
        Err(PickleError::Bounds { .. })
    ));
}

proptest! {
    #[test]
    fn damaged_files_are_read_or_refused_without_panic(
        old in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let storage = [7; 24];
        let mut file = if old {
            legacy(one_tensor(&F32_2X3), true, &[("0", 6, &storage)])
        } else {
            checkpoint(one_tensor(&F32_2X3), &[("0", &storage)])
        };
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        for bytes in [&file[..], &file[..cut.index(file.len())]] {
            if let Ok(found) = parse(bytes) {
                for tensor in found.tensors.iter().filter(|tensor| tensor.nbytes > 0) {
                    prop_assert!(tensor.offset < bytes.len() as u64);
                }
            }
        }
    }

    #[test]
    fn any_instructions_are_run_or_refused_without_panic(code in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&checkpoint(Pickle::new().raw(&code), &[])[..]);
        let _ = parse(&legacy(Pickle::new().raw(&code), true, &[])[..]);
    }
}
