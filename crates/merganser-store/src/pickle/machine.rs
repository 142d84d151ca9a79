//! A pickle machine that can build plain data and tensors, and nothing else.
//!
//! Pickle is a programme for a stack machine; Python's can call any function. This one knows a
//! closed list of names (see [`Global`]), none of which runs anything: they are tags on data. Values
//! live in flat tables and refer to each other by number, so cyclic or deeply nested input costs no
//! recursion, and memory is bounded by the number of instructions.
//!
//! Source of the instruction set: `pickletools.py` of CPython, protocols 0 to 5.

use std::collections::HashMap;

use super::PickleError;
use super::cursor::Cursor;
use crate::dtype::Dtype;
use crate::source::ReadAt;

/// Most instructions executed. A checkpoint takes about 45 for a tensor; a hostile file can make
/// each cost some 100 bytes of memory.
pub(super) const MAX_INSTRUCTIONS: u64 = 1 << 23;

/// A value; compound ones are numbers in the tables of the [`Machine`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i128),
    /// A number or byte string whose value is of no interest.
    Opaque,
    Str(usize),
    /// A tuple or a list.
    Seq(usize),
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

/// The names a pickle may refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    Size,
    RebuildTensor,
    RebuildTensorV2,
    RebuildTensorV3,
    RebuildParameter,
    RebuildParameterWithState,
    /// A class of storages; `None` for bytes without a type.
    Storage(Option<Dtype>),
    Dtype(Dtype),
}

/// A storage, as its persistent id describes it: `numel` elements kept under `key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Storage {
    pub(super) dtype: Option<Dtype>,
    pub(super) key: usize,
    /// Elements, or bytes if there is no type.
    pub(super) numel: u64,
    /// First element, for the views of the legacy format.
    pub(super) start: u64,
}

/// A window on a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tensor {
    pub(super) storage: usize,
    pub(super) dtype: Dtype,
    /// Elements before the first one.
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

/// The machine and everything it has built.
#[derive(Default)]
pub(super) struct Machine {
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u64, Value>,
    pub(super) strings: Vec<String>,
    pub(super) seqs: Vec<Vec<Value>>,
    pub(super) dicts: Vec<Vec<(Value, Value)>>,
    pub(super) storages: Vec<Storage>,
    pub(super) tensors: Vec<Tensor>,
}

type Result<T> = std::result::Result<T, PickleError>;

impl Machine {
    /// Runs the pickle at `cursor` to its end and gives what it leaves on the stack.
    pub(super) fn run<R: ReadAt + ?Sized>(&mut self, cursor: &mut Cursor<'_, R>) -> Result<Value> {
        for _ in 0..MAX_INSTRUCTIONS {
            let at = cursor.offset();
            let opcode = cursor.byte()?;
            if opcode == b'.' {
                let value = self.pop(at)?;
                self.stack.clear();
                self.marks.clear();
                self.memo.clear();
                return Ok(value);
            }
            self.step(opcode, at, cursor)?;
        }
        Err(PickleError::TooLong(MAX_INSTRUCTIONS))
    }

    fn step<R: ReadAt + ?Sized>(
        &mut self,
        opcode: u8,
        at: u64,
        cursor: &mut Cursor<'_, R>,
    ) -> Result<()> {
        let malformed = |problem| PickleError::Malformed { at, problem };
        match opcode {
            // Protocol and framing say nothing that is needed.
            0x80 => drop(cursor.byte()?),
            0x95 => drop(cursor.array::<8>()?),

            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop(at)?),
            b'1' => drop(self.pop_mark(at)?),

            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'K' => {
                let value = cursor.byte()?;
                self.stack.push(Value::Int(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(cursor.array()?);
                self.stack.push(Value::Int(value.into()));
            }
            b'J' => {
                let value = i32::from_le_bytes(cursor.array()?);
                self.stack.push(Value::Int(value.into()));
            }
            b'I' | b'L' => {
                let line = cursor.line()?;
                self.stack.push(match line.as_str() {
                    "00" => Value::Bool(false),
                    "01" => Value::Bool(true),
                    text => Value::Int(
                        text.trim_end_matches('L')
                            .parse()
                            .map_err(|_| malformed("an integer is not a number"))?,
                    ),
                });
            }
            0x8a => {
                let len = cursor.byte()?;
                self.long(len.into(), at, cursor)?;
            }
            0x8b => {
                let len = u32::from_le_bytes(cursor.array()?);
                self.long(len.into(), at, cursor)?;
            }
            b'F' => {
                cursor.line()?;
                self.stack.push(Value::Opaque);
            }
            b'G' => {
                cursor.array::<8>()?;
                self.stack.push(Value::Opaque);
            }

            b'X' => {
                let len = u32::from_le_bytes(cursor.array()?);
                self.text(len.into(), cursor)?;
            }
            0x8c => {
                let len = cursor.byte()?;
                self.text(len.into(), cursor)?;
            }
            0x8d => {
                let len = u64::from_le_bytes(cursor.array()?);
                self.text(len, cursor)?;
            }
            // Python 2's strings: text if they are text.
            b'T' => {
                let len = u32::from_le_bytes(cursor.array()?);
                self.text_or_bytes(len.into(), cursor)?;
            }
            b'U' => {
                let len = cursor.byte()?;
                self.text_or_bytes(len.into(), cursor)?;
            }
            b'S' | b'V' => {
                let line = cursor.line()?;
                let text = line.trim_matches(['\'', '"']).to_owned();
                self.push_text(text);
            }
            b'B' => {
                let len = u32::from_le_bytes(cursor.array()?);
                self.bytes(len.into(), cursor)?;
            }
            b'C' => {
                let len = cursor.byte()?;
                self.bytes(len.into(), cursor)?;
            }
            0x8e | 0x96 => {
                let len = u64::from_le_bytes(cursor.array()?);
                self.bytes(len, cursor)?;
            }

            b')' | b']' => self.push_seq(Vec::new()),
            b't' | b'l' => {
                let items = self.pop_mark(at)?;
                self.push_seq(items);
            }
            0x85..=0x87 => {
                let count = usize::from(opcode - 0x84);
                let start = self.floor(count, at)?;
                let items = self.stack.split_off(start);
                self.push_seq(items);
            }
            b'a' => {
                let item = self.pop(at)?;
                self.append(vec![item], at)?;
            }
            b'e' => {
                let items = self.pop_mark(at)?;
                self.append(items, at)?;
            }

            b'}' => self.push_dict(Vec::new()),
            b'd' => {
                let pairs = pairs(&self.pop_mark(at)?, at)?;
                self.push_dict(pairs);
            }
            b's' => {
                let start = self.floor(2, at)?;
                let items = self.stack.split_off(start);
                self.set_items(&items, at)?;
            }
            b'u' => {
                let items = self.pop_mark(at)?;
                self.set_items(&items, at)?;
            }

            b'g' => {
                let line = cursor.line()?;
                self.get(
                    line.parse()
                        .map_err(|_| malformed("a memo key is not a number"))?,
                    at,
                )?;
            }
            b'h' => {
                let key = cursor.byte()?;
                self.get(key.into(), at)?;
            }
            b'j' => {
                let key = u32::from_le_bytes(cursor.array()?);
                self.get(key.into(), at)?;
            }
            b'p' => {
                let line = cursor.line()?;
                self.put(
                    line.parse()
                        .map_err(|_| malformed("a memo key is not a number"))?,
                    at,
                )?;
            }
            b'q' => {
                let key = cursor.byte()?;
                self.put(key.into(), at)?;
            }
            b'r' => {
                let key = u32::from_le_bytes(cursor.array()?);
                self.put(key.into(), at)?;
            }
            0x94 => self.put(self.memo.len() as u64, at)?,

            b'c' => {
                let (module, name) = (cursor.line()?, cursor.line()?);
                self.stack.push(Value::Global(global(&module, &name)?));
            }
            0x93 => {
                let (name, module) = (self.pop(at)?, self.pop(at)?);
                let (Value::Str(module), Value::Str(name)) = (module, name) else {
                    return Err(malformed("a global's name is not a string"));
                };
                let global = global(&self.strings[module], &self.strings[name])?;
                self.stack.push(Value::Global(global));
            }
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop(at)?, self.pop(at)?);
                let (Value::Global(global), Value::Seq(arguments)) = (callable, arguments) else {
                    return Err(malformed("it calls something that is not a function"));
                };
                let value = self.rebuild(global, arguments, at)?;
                self.stack.push(value);
            }
            // Sets attributes. Those of a state dict (versions of modules) and of a parameter change
            // no tensor.
            b'b' => {
                self.pop(at)?;
                if !matches!(self.stack.last(), Some(Value::Dict(_) | Value::Tensor(_))) {
                    return Err(malformed(
                        "it sets attributes of something that is not a dict or tensor",
                    ));
                }
            }
            b'Q' => {
                let id = self.pop(at)?;
                let storage = self
                    .storage(id)
                    .ok_or_else(|| malformed("a persistent id is not that of a storage"))?;
                self.storages.push(storage);
                self.stack.push(Value::Storage(self.storages.len() - 1));
            }
            _ => return Err(PickleError::Opcode { at, opcode }),
        }
        Ok(())
    }

    fn pop(&mut self, at: u64) -> Result<Value> {
        let start = self.floor(1, at)?;
        self.stack.truncate(start + 1);
        self.stack.pop().ok_or(PickleError::Malformed {
            at,
            problem: "the stack is empty",
        })
    }

    /// Stack height after taking `count` values, which must lie above the last mark.
    fn floor(&self, count: usize, at: u64) -> Result<usize> {
        let start = self.stack.len().checked_sub(count);
        start
            .filter(|start| self.marks.last().is_none_or(|mark| mark <= start))
            .ok_or(PickleError::Malformed {
                at,
                problem: "the stack is empty",
            })
    }

    fn pop_mark(&mut self, at: u64) -> Result<Vec<Value>> {
        let mark = self.marks.pop().ok_or(PickleError::Malformed {
            at,
            problem: "there is no mark",
        })?;
        Ok(self.stack.split_off(mark))
    }

    fn get(&mut self, key: u64, at: u64) -> Result<()> {
        let value = self.memo.get(&key).ok_or(PickleError::Malformed {
            at,
            problem: "a memo key is unknown",
        })?;
        self.stack.push(*value);
        Ok(())
    }

    fn put(&mut self, key: u64, at: u64) -> Result<()> {
        let value = self.pop(at)?;
        self.stack.push(value);
        self.memo.insert(key, value);
        Ok(())
    }

    fn push_text(&mut self, text: String) {
        self.strings.push(text);
        self.stack.push(Value::Str(self.strings.len() - 1));
    }

    fn push_seq(&mut self, items: Vec<Value>) {
        self.seqs.push(items);
        self.stack.push(Value::Seq(self.seqs.len() - 1));
    }

    fn push_dict(&mut self, pairs: Vec<(Value, Value)>) {
        self.dicts.push(pairs);
        self.stack.push(Value::Dict(self.dicts.len() - 1));
    }

    fn text<R: ReadAt + ?Sized>(&mut self, len: u64, cursor: &mut Cursor<'_, R>) -> Result<()> {
        let text = cursor.text(len)?;
        self.push_text(text);
        Ok(())
    }

    fn text_or_bytes<R: ReadAt + ?Sized>(
        &mut self,
        len: u64,
        cursor: &mut Cursor<'_, R>,
    ) -> Result<()> {
        match String::from_utf8(cursor.take(len)?) {
            Ok(text) => self.push_text(text),
            Err(_) => self.stack.push(Value::Opaque),
        }
        Ok(())
    }

    fn bytes<R: ReadAt + ?Sized>(&mut self, len: u64, cursor: &mut Cursor<'_, R>) -> Result<()> {
        cursor.take(len)?;
        self.stack.push(Value::Opaque);
        Ok(())
    }

    /// A two's-complement integer of `len` bytes.
    fn long<R: ReadAt + ?Sized>(
        &mut self,
        len: u64,
        at: u64,
        cursor: &mut Cursor<'_, R>,
    ) -> Result<()> {
        let bytes = cursor.take(len)?;
        let mut wide = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) {
            [0xff; 16]
        } else {
            [0; 16]
        };
        wide.get_mut(..bytes.len())
            .ok_or(PickleError::Malformed {
                at,
                problem: "an integer is too large",
            })?
            .copy_from_slice(&bytes);
        self.stack.push(Value::Int(i128::from_le_bytes(wide)));
        Ok(())
    }

    fn append(&mut self, items: Vec<Value>, at: u64) -> Result<()> {
        match self.stack.last() {
            Some(&Value::Seq(list)) => {
                self.seqs[list].extend(items);
                Ok(())
            }
            _ => Err(PickleError::Malformed {
                at,
                problem: "it appends to something that is not a list",
            }),
        }
    }

    fn set_items(&mut self, items: &[Value], at: u64) -> Result<()> {
        match self.stack.last() {
            Some(&Value::Dict(dict)) => {
                self.dicts[dict].extend(pairs(items, at)?);
                Ok(())
            }
            _ => Err(PickleError::Malformed {
                at,
                problem: "it sets items of something that is not a dict",
            }),
        }
    }

    /// A storage from `('storage', class, key, location, numel[, view])`.
    fn storage(&self, id: Value) -> Option<Storage> {
        let Value::Seq(id) = id else { return None };
        let (&[kind, class, key, _location, numel], view) = self.seqs[id].split_first_chunk()?;
        let (Value::Str(kind), Value::Global(Global::Storage(dtype)), Value::Str(key)) =
            (kind, class, key)
        else {
            return None;
        };
        let mut storage = Storage {
            dtype,
            key,
            numel: self.count(numel)?,
            start: 0,
        };
        match view {
            [] | [Value::None] => {}
            // The legacy format describes a part of a storage as (its key, first element, elements).
            &[Value::Seq(view)] => {
                let &[_key, start, numel] = self.seqs[view].as_slice() else {
                    return None;
                };
                storage.start = self.count(start)?;
                storage.numel = self.count(numel)?;
            }
            _ => return None,
        }
        (self.strings[kind] == "storage").then_some(storage)
    }

    #[allow(clippy::unused_self)]
    fn count(&self, value: Value) -> Option<u64> {
        match value {
            Value::Int(count) => u64::try_from(count).ok(),
            _ => None,
        }
    }

    fn counts(&self, value: Value) -> Option<Vec<usize>> {
        let Value::Seq(items) = value else {
            return None;
        };
        self.seqs[items]
            .iter()
            .map(|&item| self.count(item).map(|count| count as usize))
            .collect()
    }

    /// What a call gives. The arguments are data; nothing is called.
    fn rebuild(&mut self, global: Global, arguments: usize, at: u64) -> Result<Value> {
        let malformed = |problem| PickleError::Malformed { at, problem };
        let given = self.seqs[arguments].clone();
        match (global, given.as_slice()) {
            (Global::OrderedDict, []) => {
                self.dicts.push(Vec::new());
                Ok(Value::Dict(self.dicts.len() - 1))
            }
            (Global::OrderedDict, &[Value::Seq(items)]) => {
                let mut pairs = Vec::new();
                for item in &self.seqs[items] {
                    match item {
                        Value::Seq(pair) if self.seqs[*pair].len() == 2 => {
                            pairs.push((self.seqs[*pair][0], self.seqs[*pair][1]));
                        }
                        _ => return Err(malformed("an item of an OrderedDict is not a pair")),
                    }
                }
                self.dicts.push(pairs);
                Ok(Value::Dict(self.dicts.len() - 1))
            }
            (Global::Size, &[Value::Seq(size)]) => Ok(Value::Seq(size)),
            (
                Global::RebuildParameter | Global::RebuildParameterWithState,
                &[tensor @ Value::Tensor(_), ..],
            ) => Ok(tensor),
            (
                Global::RebuildTensor | Global::RebuildTensorV2 | Global::RebuildTensorV3,
                &[
                    Value::Storage(storage),
                    offset,
                    shape,
                    strides,
                    ref rest @ ..,
                ],
            ) => {
                let (dtype, metadata) = if global == Global::RebuildTensorV3 {
                    match rest {
                        &[
                            _requires_grad,
                            _hooks,
                            Value::Global(Global::Dtype(dtype)),
                            ref metadata @ ..,
                        ] => (Some(dtype), metadata),
                        _ => return Err(malformed("a tensor has no dtype")),
                    }
                } else {
                    (
                        self.storages[storage].dtype,
                        rest.get(2..).unwrap_or_default(),
                    )
                };
                // The metadata says that the elements are stored negated or conjugated.
                if metadata.iter().any(
                    |value| matches!(value, Value::Dict(dict) if !self.dicts[*dict].is_empty()),
                ) {
                    return Err(malformed(
                        "a tensor is stored negated or conjugated; save a plain copy of it",
                    ));
                }
                let dtype = dtype.ok_or_else(|| malformed("a tensor has no dtype"))?;
                let offset = self
                    .count(offset)
                    .ok_or_else(|| malformed("a tensor's offset is not a number"))?;
                let (Some(shape), Some(strides)) = (self.counts(shape), self.counts(strides))
                else {
                    return Err(malformed(
                        "a tensor's shape or strides are not non-negative numbers",
                    ));
                };
                if shape.len() != strides.len() || shape.len() > crate::header::MAX_RANK {
                    return Err(malformed("a tensor's shape and strides do not fit"));
                }
                self.tensors.push(Tensor {
                    storage,
                    dtype,
                    offset,
                    shape,
                    strides,
                });
                Ok(Value::Tensor(self.tensors.len() - 1))
            }
            _ => Err(malformed("a call has arguments that do not fit")),
        }
    }
}

fn pairs(items: &[Value], at: u64) -> Result<Vec<(Value, Value)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
    } else {
        Err(PickleError::Malformed {
            at,
            problem: "a dict has a key without a value",
        })
    }
}

/// The allow-list.
fn global(module: &str, name: &str) -> Result<Global> {
    let forbidden = || PickleError::Forbidden {
        module: module.to_owned(),
        name: name.to_owned(),
    };
    Ok(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch", "Size") => Global::Size,
        ("torch._utils", "_rebuild_tensor") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensorV2,
        ("torch._utils", "_rebuild_tensor_v3") => Global::RebuildTensorV3,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch._utils", "_rebuild_parameter_with_state") => Global::RebuildParameterWithState,
        ("torch.storage" | "torch", "UntypedStorage") => Global::Storage(None),
        ("torch" | "torch.cuda", class) if class.ends_with("Storage") => {
            let dtype =
                storage_dtype(class).ok_or_else(|| PickleError::Storage(class.to_owned()))?;
            Global::Storage(Some(dtype))
        }
        ("torch", name) => Global::Dtype(Dtype::from_torch_name(name).ok_or_else(forbidden)?),
        _ => return Err(forbidden()),
    })
}

fn storage_dtype(class: &str) -> Option<Dtype> {
    Some(match class.strip_suffix("Storage")? {
        "Double" => Dtype::F64,
        "Float" => Dtype::F32,
        "Half" => Dtype::F16,
        "BFloat16" => Dtype::BF16,
        "Long" => Dtype::I64,
        "Int" => Dtype::I32,
        "Short" => Dtype::I16,
        "Char" => Dtype::I8,
        "Byte" => Dtype::U8,
        "Bool" => Dtype::Bool,
        _ => return None,
    })
}
