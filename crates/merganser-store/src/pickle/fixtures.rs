//! Writes torch checkpoints for tests: pickles instruction by instruction, and the two containers
//! around them.

/// A pickle being written, in the style of torch: protocol 2, no memo.
#[derive(Clone)]
pub(crate) struct Pickle(pub(crate) Vec<u8>);

/// A tensor to be written.
#[derive(Clone)]
pub(crate) struct TensorSpec<'a> {
    pub(crate) class: &'a str,
    pub(crate) key: &'a str,
    pub(crate) numel: i32,
    pub(crate) offset: i32,
    pub(crate) shape: &'a [i32],
    pub(crate) strides: &'a [i32],
}

impl Pickle {
    pub(crate) fn new() -> Self {
        Self(vec![0x80, 2])
    }

    pub(crate) fn op(mut self, code: u8) -> Self {
        self.0.push(code);
        self
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn str(self, text: &str) -> Self {
        self.op(b'X')
            .raw(&(text.len() as u32).to_le_bytes())
            .raw(text.as_bytes())
    }

    pub(crate) fn int(self, value: i32) -> Self {
        self.op(b'J').raw(&value.to_le_bytes())
    }

    pub(crate) fn ints(self, values: &[i32]) -> Self {
        values
            .iter()
            .fold(self.op(b'('), |pickle, &value| pickle.int(value))
            .op(b't')
    }

    pub(crate) fn global(self, module: &str, name: &str) -> Self {
        self.raw(format!("c{module}\n{name}\n").as_bytes())
    }

    pub(crate) fn ordered_dict(self) -> Self {
        self.global("collections", "OrderedDict").raw(b")R")
    }

    fn storage(self, tensor: &TensorSpec<'_>) -> Self {
        let module = if tensor.class == "UntypedStorage" {
            "torch.storage"
        } else {
            "torch"
        };
        self.op(b'(')
            .str("storage")
            .global(module, tensor.class)
            .str(tensor.key)
            .str("cpu")
            .int(tensor.numel)
    }

    /// `_rebuild_tensor_v2` over a typed storage.
    pub(crate) fn tensor(self, tensor: &TensorSpec<'_>) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(b'(')
            .storage(tensor)
            .raw(b"tQ")
            .window(tensor)
            .op(0x89)
            .ordered_dict()
            .raw(b"tR")
    }

    /// `_rebuild_tensor_v3` over an untyped storage.
    pub(crate) fn tensor_v3(self, tensor: &TensorSpec<'_>, dtype: &str) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v3")
            .op(b'(')
            .storage(tensor)
            .raw(b"tQ")
            .window(tensor)
            .op(0x89)
            .ordered_dict()
            .global("torch", dtype)
            .raw(b"tR")
    }

    /// A tensor on a part of a storage, as the legacy format writes it.
    pub(crate) fn tensor_on_view(self, tensor: &TensorSpec<'_>, start: i32, numel: i32) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(b'(')
            .storage(tensor)
            .op(b'(')
            .str("view")
            .int(start)
            .int(numel)
            .raw(b"ttQ")
            .window(tensor)
            .op(0x89)
            .ordered_dict()
            .raw(b"tR")
    }

    fn window(self, tensor: &TensorSpec<'_>) -> Self {
        self.int(tensor.offset)
            .ints(tensor.shape)
            .ints(tensor.strides)
    }

    pub(crate) fn stop(self) -> Vec<u8> {
        self.op(b'.').0
    }
}

/// A pickled dict of `entries`, each of which writes one value.
pub(crate) fn dict(entries: &[(&str, &dyn Fn(Pickle) -> Pickle)]) -> Pickle {
    let open = Pickle::new().raw(b"}(");
    entries
        .iter()
        .fold(open, |pickle, (key, value)| value(pickle.str(key)))
        .op(b'u')
}

/// How the directory of an archive is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Plain,
    Zip64,
}

/// A zip archive of stored files, contents aligned to 64 bytes as torch does.
pub(crate) fn zip(files: &[(&str, &[u8])], form: Form) -> Vec<u8> {
    let mut out = Vec::new();
    let mut directory = Vec::new();
    for (name, content) in files {
        let local = out.len();
        let padding = (64 - (local + 30 + name.len() + 4) % 64) % 64;
        let size = (content.len() as u32).to_le_bytes();
        let (name_len, extra_len) = (
            (name.len() as u16).to_le_bytes(),
            (padding as u16 + 4).to_le_bytes(),
        );
        out.extend(b"PK\x03\x04\0\0\0\x08\0\0\0\0\0\0\0\0\0\0");
        out.extend(size.iter().chain(&size).chain(&name_len).chain(&extra_len));
        out.extend(name.as_bytes());
        out.extend(b"FB");
        out.extend((padding as u16).to_le_bytes());
        out.resize(out.len() + padding, b'Z');
        out.extend_from_slice(content);

        directory.extend(b"PK\x01\x02\0\0\0\0\0\x08\0\0\0\0\0\0\0\0\0\0");
        let mut extra = Vec::new();
        if form == Form::Zip64 {
            directory.extend([0xff; 8]);
            extra.extend(b"\x01\0\x18\0");
            for value in [content.len(), content.len(), local] {
                extra.extend((value as u64).to_le_bytes());
            }
        } else {
            directory.extend(size.iter().chain(&size));
        }
        directory.extend(name_len);
        directory.extend((extra.len() as u16).to_le_bytes());
        directory.extend([0; 10]);
        directory.extend(if form == Form::Zip64 {
            [0xff; 4]
        } else {
            (local as u32).to_le_bytes()
        });
        directory.extend(name.as_bytes());
        directory.extend(extra);
    }
    let (start, len, count) = (out.len(), directory.len(), files.len());
    out.extend(directory);
    if form == Form::Zip64 {
        let end64 = out.len() as u64;
        out.extend(b"PK\x06\x06\x2c\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        for value in [count, count, len, start] {
            out.extend((value as u64).to_le_bytes());
        }
        out.extend(b"PK\x06\x07\0\0\0\0");
        out.extend(end64.to_le_bytes());
        out.extend(b"\x01\0\0\0");
        out.extend(b"PK\x05\x06\0\0\0\0");
        out.extend([0xff; 12]);
    } else {
        out.extend(b"PK\x05\x06\0\0\0\0");
        out.extend(
            (count as u16)
                .to_le_bytes()
                .iter()
                .chain(&(count as u16).to_le_bytes()),
        );
        out.extend(
            (len as u32)
                .to_le_bytes()
                .iter()
                .chain(&(start as u32).to_le_bytes()),
        );
    }
    out.extend(b"\0\0");
    out
}

/// A checkpoint in the zip format.
pub(crate) fn checkpoint(pickle: Pickle, storages: &[(&str, &[u8])]) -> Vec<u8> {
    let structure = pickle.stop();
    let names: Vec<_> = storages
        .iter()
        .map(|(key, _)| format!("m/data/{key}"))
        .collect();
    let mut files: Vec<(&str, &[u8])> =
        vec![("m/data.pkl", &structure), ("m/byteorder", b"little")];
    files.extend(
        names
            .iter()
            .zip(storages)
            .map(|(name, (_, content))| (name.as_str(), *content)),
    );
    zip(&files, Form::Plain)
}

/// A checkpoint in the format before torch 1.6.
pub(crate) fn legacy(
    pickle: Pickle,
    little_endian: bool,
    storages: &[(&str, u64, &[u8])],
) -> Vec<u8> {
    let mut out = Pickle::new()
        .raw(b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19")
        .stop();
    out.extend(Pickle::new().op(b'M').raw(&1001_u16.to_le_bytes()).stop());
    let flag = if little_endian { 0x88 } else { 0x89 };
    out.extend(
        dict(&[
            ("protocol_version", &|p| p.int(1001)),
            ("little_endian", &|p| p.op(flag)),
        ])
        .stop(),
    );
    out.extend(pickle.stop());
    let keys = storages
        .iter()
        .fold(Pickle::new().raw(b"]("), |pickle, (key, ..)| {
            pickle.str(key)
        });
    out.extend(keys.op(b'e').stop());
    for (_, numel, content) in storages {
        out.extend(numel.to_le_bytes());
        out.extend_from_slice(content);
    }
    out
}
