//! A reader for the pickles that `torch.save` writes: nested dicts of tensors, and nothing else.
//!
//! A pickle is a program for a stack machine that may call any Python function. This machine knows
//! the opcodes of protocol 2 that `torch.save` emits and the few callables below; whatever else a
//! file asks for is an error that names it. Containers live in lists of the machine and values hold
//! their index, so that a hostile file can build no deep or cyclic structure to recurse into. All
//! that the machine keeps is paid for from a budget that the size of the file sets.
//!
//! Format: <https://github.com/pytorch/pytorch/blob/v2.5.1/torch/serialization.py> and
//! <https://github.com/python/cpython/blob/v3.13.0/Lib/pickletools.py>.

use std::collections::BTreeMap;
use std::mem::size_of;

use safetensors::Dtype;

/// Opcodes executed at most; three copies of the 14B network take some two hundred thousand.
const MAX_STEPS: usize = 1 << 21;
/// Bytes that any file may cost: two thousand tensors, however small.
const MIN_BUDGET: usize = 4 << 20;
/// Bytes that a value costs where it lies in a list, with the room in which the list grows.
const CELL: usize = 2 * size_of::<Value<'static>>();
/// Bytes that an entry of the memo costs.
const MEMO: usize = 64;
/// Bytes that a tensor costs besides its view and name: what becomes of both after this reader.
const TENSOR: usize = 256;
/// Copies of a name: in its checkpoint, and on the way there.
const COPIES: usize = 4;
/// Axes of a tensor, at most.
const MAX_RANK: usize = 8;

/// A tensor as the pickle describes it: a view of a storage kept elsewhere in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View<'a> {
    /// The storage's key: in an archive, its entry below `data/`.
    pub(super) storage: &'a str,
    pub(super) dtype: Dtype,
    /// Elements of the storage.
    pub(super) elements: u64,
    /// First element of the view in the storage.
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    /// In elements.
    pub(super) strides: Vec<usize>,
}

/// Runs the pickle and lists the tensors of the first dict of `prefer` that its root holds, or of
/// the root itself; nested dicts give dotted names. It takes no more memory than a file of `size`
/// bytes is worth.
pub(super) fn read<'a>(
    bytes: &'a [u8],
    size: usize,
    prefer: &[&str],
) -> Result<Vec<(String, View<'a>)>, String> {
    let mut machine = Machine::new(bytes, size);
    let root = machine.run()?;
    machine.tensors(root, prefer)
}

/// What a pickle makes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    /// Carried along but of no use to us: fractions, `None`.
    Other,
    Flag(bool),
    Int(i64),
    Text(&'a str),
    Callable(Callable),
    StorageClass(Dtype),
    /// Index into `Machine::lists`.
    List(usize),
    /// A run of `Machine::items`.
    Tuple(Span),
    /// Index into `Machine::dicts`.
    Dict(usize),
    /// Index into `Machine::storages`.
    Storage(usize),
    /// Index into `Machine::views`.
    Tensor(usize),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Callable {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
}

/// The number of steps bounds both.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    start: u32,
    len: u32,
}

/// What tensors are views of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage<'a> {
    pub(super) key: &'a str,
    pub(super) dtype: Dtype,
    pub(super) elements: u64,
}

/// Runs pickles that lie one after the other; what one of them has made outlasts it.
pub(super) struct Machine<'a> {
    input: &'a [u8],
    stack: Vec<Value<'a>>,
    /// Heights of the stack at which a MARK was set.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Value<'a>>,
    /// Of all tuples, one after the other.
    items: Vec<Value<'a>>,
    lists: Vec<Vec<Value<'a>>>,
    dicts: Vec<Vec<(Value<'a>, Value<'a>)>>,
    storages: Vec<Storage<'a>>,
    views: Vec<View<'a>>,
    /// The most values that the stack, and the most marks that their list has held.
    deepest: (usize, usize),
    /// Bytes that may still be taken.
    budget: usize,
}

impl<'a> Machine<'a> {
    /// Takes no more memory than a file of `size` bytes is worth.
    pub(super) fn new(input: &'a [u8], size: usize) -> Self {
        Self {
            input,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: BTreeMap::new(),
            items: Vec::new(),
            lists: Vec::new(),
            dicts: Vec::new(),
            storages: Vec::new(),
            views: Vec::new(),
            deepest: (0, 0),
            budget: size.max(MIN_BUDGET),
        }
    }

    /// What lies behind the pickles run so far.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.input
    }

    /// The storages that tensors refer to, in the order in which they are named.
    pub(super) fn storages(&self) -> &[Storage<'a>] {
        &self.storages
    }

    /// What a list holds; nothing for another value.
    pub(super) fn listed(&self, value: Value<'a>) -> Option<&[Value<'a>]> {
        match value {
            Value::List(list) => self.lists.get(list).map(Vec::as_slice),
            _ => None,
        }
    }

    /// An entry of a dict; nothing for another value.
    pub(super) fn entry(&self, value: Value<'a>, wanted: &str) -> Option<Value<'a>> {
        let Value::Dict(dict) = value else { return None };
        let mut entries = self.dicts.get(dict)?.iter();
        entries.find_map(|(key, value)| {
            matches!(key, Value::Text(key) if *key == wanted).then_some(*value)
        })
    }

    /// Takes memory from the budget.
    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), String> {
        self.budget = self.budget.checked_sub(bytes).ok_or(
            "the pickle builds more than a file of this size can have use for; it is not read on",
        )?;
        Ok(())
    }

    /// Runs the next pickle, up to its STOP; every opcode pushes at most one value.
    pub(super) fn run(&mut self) -> Result<Value<'a>, String> {
        self.stack.clear();
        self.marks.clear();
        self.memo.clear();
        for _ in 0..MAX_STEPS {
            match self.byte()? {
                b'.' => return self.pop(),
                opcode => self.execute(opcode)?,
            }
        }
        Err(format!("the pickle has more than {MAX_STEPS} steps"))
    }

    fn execute(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            0x80 => self.protocol(),
            b'(' => self.mark(),
            b'N' => self.push(Value::Other),
            0x88 | 0x89 => self.push(Value::Flag(opcode == 0x88)),
            b'J' | b'K' | b'M' | 0x8a | b'G' => self.number(opcode),
            b'X' => self.text(),
            b'c' => self.global(),
            b'q' | b'r' | b'h' | b'j' => self.memory(opcode),
            b')' | 0x85 | 0x86 | 0x87 | b't' => self.tuple(opcode),
            b'}' => self.dict(),
            b']' => self.list(),
            b's' | b'u' => self.set_items(opcode),
            b'a' | b'e' => self.append(opcode),
            b'Q' => self.storage(),
            b'R' => self.call(),
            b'b' => self.set_state(),
            _ => Err(format!("pickle opcode {opcode:#04x} is not one that torch.save writes")),
        }
    }

    fn mark(&mut self) -> Result<(), String> {
        self.marks.push(self.stack.len());
        if self.marks.len() > self.deepest.1 {
            self.deepest.1 = self.marks.len();
            self.spend(2 * size_of::<usize>())?;
        }
        Ok(())
    }

    fn protocol(&mut self) -> Result<(), String> {
        match self.byte()? {
            2 => Ok(()),
            other => Err(format!("expected a pickle of protocol 2, got {other}")),
        }
    }

    fn number(&mut self, opcode: u8) -> Result<(), String> {
        let value = match opcode {
            b'K' => Value::Int(self.byte()?.into()),
            b'M' => Value::Int(u16::from_le_bytes(self.array()?).into()),
            b'J' => Value::Int(i32::from_le_bytes(self.array()?).into()),
            b'G' => {
                self.take(8)?;
                Value::Other
            }
            _ => self.long()?,
        };
        self.push(value)
    }

    /// An integer of as many bytes as the first one says; those past 64 bits matter to no tensor.
    fn long(&mut self) -> Result<Value<'a>, String> {
        let len = self.byte()?.into();
        let bytes = self.take(len)?;
        let Some(last) = bytes.last().filter(|_| len <= 8) else {
            return Ok(if len == 0 { Value::Int(0) } else { Value::Other });
        };
        let mut wide = [if last & 0x80 == 0 { 0 } else { 0xff }; 8];
        wide[..len].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(wide)))
    }

    fn text(&mut self) -> Result<(), String> {
        let len = u32::from_le_bytes(self.array()?) as usize;
        let text = std::str::from_utf8(self.take(len)?)
            .map_err(|_| "the pickle has a text that is not UTF-8".to_owned())?;
        self.push(Value::Text(text))
    }

    fn global(&mut self) -> Result<(), String> {
        let (module, name) = (self.line()?, self.line()?);
        let value = match (module, name) {
            ("collections", "OrderedDict") => Value::Callable(Callable::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Value::Callable(Callable::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Value::Callable(Callable::RebuildParameter),
            ("torch" | "torch.storage", class) if storage_class(class).is_some() => {
                storage_class(class).map_or(Value::Other, Value::StorageClass)
            }
            _ => {
                return Err(format!(
                    "the pickle asks for `{}.{}`, which a checkpoint of tensors has no use for; it \
                     is not run",
                    module.escape_debug(),
                    name.escape_debug()
                ));
            }
        };
        self.push(value)
    }

    fn memory(&mut self, opcode: u8) -> Result<(), String> {
        let key = match opcode {
            b'q' | b'h' => self.byte()?.into(),
            _ => u32::from_le_bytes(self.array()?),
        };
        if matches!(opcode, b'q' | b'r') {
            let top = *self.stack.last().ok_or_else(underflow)?;
            let is_new = self.memo.insert(key, top).is_none();
            return if is_new { self.spend(MEMO) } else { Ok(()) };
        }
        let value = self.memo.get(&key).copied();
        self.push(value.ok_or_else(|| format!("the pickle recalls {key}, never stored"))?)
    }

    fn tuple(&mut self, opcode: u8) -> Result<(), String> {
        let items = match opcode {
            b't' => self.pop_mark()?,
            b')' => Vec::new(),
            _ => self.pop_many(usize::from(opcode - 0x84))?,
        };
        self.spend(items.len() * CELL)?;
        let span = Span { start: self.items.len() as u32, len: items.len() as u32 };
        self.items.extend(items);
        self.push(Value::Tuple(span))
    }

    fn items(&self, tuple: Span) -> &[Value<'a>] {
        &self.items[tuple.start as usize..][..tuple.len as usize]
    }

    fn list(&mut self) -> Result<(), String> {
        self.spend(2 * size_of::<Vec<Value<'_>>>())?;
        self.lists.push(Vec::new());
        self.push(Value::List(self.lists.len() - 1))
    }

    fn dict(&mut self) -> Result<(), String> {
        self.spend(2 * size_of::<Vec<Value<'_>>>())?;
        self.dicts.push(Vec::new());
        self.push(Value::Dict(self.dicts.len() - 1))
    }

    fn set_items(&mut self, opcode: u8) -> Result<(), String> {
        let items = if opcode == b's' { self.pop_many(2)? } else { self.pop_mark()? };
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err("the pickle has a dict with a key and no value".into());
        };
        self.spend(items.len() * CELL)?;
        match self.stack.last() {
            Some(Value::Dict(dict)) => {
                self.dicts[*dict].extend(pairs.iter().map(|[key, value]| (*key, *value)));
                Ok(())
            }
            _ => Err("the pickle sets an item of what is no dict".into()),
        }
    }

    fn append(&mut self, opcode: u8) -> Result<(), String> {
        let items = if opcode == b'a' { self.pop_many(1)? } else { self.pop_mark()? };
        self.spend(items.len() * CELL)?;
        match self.stack.last() {
            Some(Value::List(list)) => {
                self.lists[*list].extend(items);
                Ok(())
            }
            _ => Err("the pickle appends to what is no list".into()),
        }
    }

    /// `('storage', class, key, device, elements)`, the only thing torch.save keeps by reference. Where
    /// it writes no archive, what the storage is a view of follows: `None`.
    fn storage(&mut self) -> Result<(), String> {
        let reference = self.pop_tuple()?;
        let [
            Value::Text("storage"),
            class,
            Value::Text(key),
            _,
            Value::Int(elements),
            ref view @ ..,
        ] = *self.items(reference)
        else {
            return Err("the pickle refers to something that is no storage".into());
        };
        if !matches!(view, [] | [Value::Other]) {
            return Err(format!(
                "storage {key} is a view of another one, expected a whole one; load the file in \
                 PyTorch and torch.save it again"
            ));
        }
        let Value::StorageClass(dtype) = class else {
            return Err("the pickle has a storage without an element type".into());
        };
        let elements = u64::try_from(elements).map_err(|_| negative())?;
        self.spend(2 * size_of::<Storage<'_>>())?;
        self.storages.push(Storage { key, dtype, elements });
        self.push(Value::Storage(self.storages.len() - 1))
    }

    fn call(&mut self) -> Result<(), String> {
        let arguments = self.pop_tuple()?;
        let Value::Callable(callable) = self.pop()? else {
            return Err("the pickle calls what is no function".into());
        };
        match (callable, self.items(arguments)) {
            (Callable::OrderedDict, []) => self.dict(),
            (Callable::RebuildParameter, &[tensor @ Value::Tensor(_), ..]) => self.push(tensor),
            (Callable::RebuildTensor, &[storage, offset, shape, strides, ..]) => {
                let view = self.view(storage, offset, shape, strides)?;
                self.spend(2 * view.bytes())?;
                self.views.push(view);
                self.push(Value::Tensor(self.views.len() - 1))
            }
            _ => Err(format!("the pickle calls {callable:?} with arguments it does not take")),
        }
    }

    /// A view that lies within its storage and shows no element twice more than the storage has.
    fn view(
        &self,
        storage: Value<'a>,
        offset: Value<'a>,
        shape: Value<'a>,
        strides: Value<'a>,
    ) -> Result<View<'a>, String> {
        let (Value::Storage(storage), Value::Int(offset)) = (storage, offset) else {
            return Err("the pickle has a tensor without a storage".into());
        };
        let storage = &self.storages[storage];
        let view = View {
            storage: storage.key,
            dtype: storage.dtype,
            elements: storage.elements,
            offset: u64::try_from(offset).map_err(|_| negative())?,
            shape: self.sizes(shape)?,
            strides: self.sizes(strides)?,
        };
        match view.span() {
            Some(span) if span <= view.elements && view.shape.len() == view.strides.len() => {
                Ok(view)
            }
            _ => Err(format!(
                "a tensor of shape {:?}, strides {:?} and offset {} does not fit its storage of {} \
                 elements",
                view.shape, view.strides, view.offset, view.elements
            )),
        }
    }

    fn sizes(&self, tuple: Value<'a>) -> Result<Vec<usize>, String> {
        let Value::Tuple(tuple) = tuple else {
            return Err("the pickle has a tensor without a shape".into());
        };
        let sizes = self.items(tuple);
        if sizes.len() > MAX_RANK {
            return Err(format!("a tensor has {} axes, at most {MAX_RANK} are read", sizes.len()));
        }
        let size = |value: &Value<'_>| match value {
            Value::Int(size) => usize::try_from(*size).map_err(|_| negative()),
            _ => Err("the pickle has a shape that is no list of numbers".into()),
        };
        sizes.iter().map(size).collect()
    }

    /// An OrderedDict's attributes (torch's `_metadata`); of no use here.
    fn set_state(&mut self) -> Result<(), String> {
        self.pop()?;
        match self.stack.last() {
            Some(Value::Dict(_)) => Ok(()),
            _ => Err("the pickle sets the state of what is no dict".into()),
        }
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), String> {
        self.stack.push(value);
        if self.stack.len() > self.deepest.0 {
            self.deepest.0 = self.stack.len();
            self.spend(CELL)?;
        }
        Ok(())
    }

    fn pop(&mut self) -> Result<Value<'a>, String> {
        self.stack.pop().ok_or_else(underflow)
    }

    fn pop_many(&mut self, n: usize) -> Result<Vec<Value<'a>>, String> {
        let height = self.stack.len().checked_sub(n).ok_or_else(underflow)?;
        Ok(self.stack.split_off(height))
    }

    fn pop_mark(&mut self) -> Result<Vec<Value<'a>>, String> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len());
        Ok(self.stack.split_off(mark.ok_or_else(underflow)?))
    }

    fn pop_tuple(&mut self) -> Result<Span, String> {
        match self.pop()? {
            Value::Tuple(tuple) => Ok(tuple),
            _ => Err("the pickle calls or refers to something without a tuple".into()),
        }
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.array().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (array, rest) = self.input.split_first_chunk().ok_or_else(truncated)?;
        self.input = rest;
        Ok(*array)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.input.split_at_checked(len).ok_or_else(truncated)?;
        self.input = rest;
        Ok(taken)
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let end = self.input.iter().position(|b| *b == b'\n').ok_or_else(truncated)?;
        let line = self.take(end)?;
        self.byte()?;
        std::str::from_utf8(line).map_err(|_| "the pickle names a module not in UTF-8".to_owned())
    }

    /// The tensors of the first dict of `prefer` that `root` holds, or of `root` itself.
    pub(super) fn tensors(
        &mut self,
        root: Value<'a>,
        prefer: &[&str],
    ) -> Result<Vec<(String, View<'a>)>, String> {
        let Value::Dict(root) = root else {
            return Err("the pickle holds no dict of tensors".into());
        };
        let child = |wanted: &&str| {
            self.dicts[root].iter().find_map(|(key, value)| match (key, value) {
                (Value::Text(key), Value::Dict(dict)) if key == wanted => Some(*dict),
                _ => None,
            })
        };
        let top = prefer.iter().find_map(child).unwrap_or(root);
        self.flatten(top)
    }

    /// Walks the dicts below one, and takes each of them apart: it is met once.
    fn flatten(&mut self, top: usize) -> Result<Vec<(String, View<'a>)>, String> {
        let mut found = Vec::new();
        let mut open = vec![(String::new(), top)];
        while let Some((prefix, dict)) = open.pop() {
            for (key, value) in std::mem::take(&mut self.dicts[dict]) {
                match value {
                    Value::Dict(dict) => {
                        let name = self.name(&prefix, key)?;
                        open.extend(name.map(|name| (name + ".", dict)));
                    }
                    Value::Tensor(view) => {
                        let name = self.name(&prefix, key)?;
                        self.spend(TENSOR + self.views[view].bytes())?;
                        found.extend(name.map(|name| (name, self.views[view].clone())));
                    }
                    _ => {}
                }
            }
        }
        Ok(found)
    }

    /// The name of a dict's entry; `None` for a key that is no text or number.
    fn name(&mut self, prefix: &str, key: Value<'_>) -> Result<Option<String>, String> {
        let key: &str = match key {
            Value::Text(key) => key,
            Value::Int(key) => &key.to_string(),
            _ => return Ok(None),
        };
        self.spend(COPIES * (prefix.len() + key.len() + size_of::<String>()))?;
        Ok(Some(format!("{prefix}{key}")))
    }
}

impl View<'_> {
    /// Bytes of memory that it takes.
    fn bytes(&self) -> usize {
        size_of::<Self>() + 2 * size_of_val(self.shape.as_slice())
    }

    /// Elements of the storage up to the last that the view shows; `None` for a view that is larger
    /// than its storage or than any memory.
    pub(super) fn span(&self) -> Option<u64> {
        let shown = self.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64))?;
        if shown == 0 {
            return Some(self.offset);
        }
        let last = self.shape.iter().zip(&self.strides).try_fold(self.offset, |at, (d, s)| {
            at.checked_add((*d as u64 - 1).checked_mul(*s as u64)?)
        })?;
        (shown <= self.elements).then(|| last.checked_add(1)).flatten()
    }
}

fn storage_class(name: &str) -> Option<Dtype> {
    Some(match name {
        "FloatStorage" => Dtype::F32,
        "BFloat16Storage" => Dtype::BF16,
        "HalfStorage" => Dtype::F16,
        "DoubleStorage" => Dtype::F64,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" | "UntypedStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

fn truncated() -> String {
    "the pickle ends in the middle".into()
}

fn underflow() -> String {
    "the pickle takes more from its stack than it has put there".into()
}

fn negative() -> String {
    "the pickle has a negative size".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(pickle: &[u8]) -> String {
        read(pickle, pickle.len(), &[]).unwrap_err()
    }

    #[test]
    fn a_foreign_function_is_named_and_not_run() {
        let error = error(b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lstR.");
        assert!(error.contains("`os.system`"), "{error}");
    }

    #[test]
    fn lengths_are_not_believed() {
        assert!(error(b"\x80\x02X\xff\xff\xff\xffabc").contains("ends in the middle"));
        assert!(error(b"\x80\x02\x8a\xffabc").contains("ends in the middle"));
        assert!(error(b"\x80\x04.").contains("protocol 2"));
        assert!(error(b"\x80\x02(u.").contains("no dict"));
        assert!(error(b"\x80\x02h\x07.").contains("never stored"));
    }

    #[test]
    fn a_dict_inside_itself_ends() {
        // d = {}; d["a"] = d
        assert_eq!(read(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", 0, &[]).unwrap(), []);
    }

    #[test]
    fn a_program_that_runs_forever_ends() {
        let mut pickle = b"\x80\x02".to_vec();
        pickle.resize(MAX_STEPS + 8, b')');
        assert!(read(&pickle, 1 << 40, &[]).unwrap_err().contains("steps"));
    }

    /// Whatever is repeated, the machine stops before it has built more than the file is worth.
    #[test]
    fn building_is_paid_for() {
        for opcodes in [&b"N"[..], b"(", b")", b"}", b"]", b")q0", b"K0\x85", b"N\x85"] {
            let pickle = [b"\x80\x02", &opcodes.repeat(500_000)[..]].concat();
            assert!(error(&pickle).contains("a file of this size"), "{opcodes:?}");
        }
        let list = [b"\x80\x02]", &b"Na".repeat(500_000)[..], b"."].concat();
        assert!(error(&list).contains("a file of this size"));
        let mut memo = b"\x80\x02N".to_vec();
        (0..100_000u32).for_each(|key| {
            memo.push(b'r');
            memo.extend(key.to_le_bytes());
        });
        assert!(error(&memo).contains("a file of this size"));
        // Names grow with every level: {"x…x": {"x…x": …}}.
        let level = [&b"}X\x00\x04\x00\x00"[..], &[b'x'; 1024]].concat();
        let nested = [b"\x80\x02", &level.repeat(200)[..], b"}", &b"s".repeat(200), b"."].concat();
        assert!(error(&nested).contains("a file of this size"));
    }

    /// `{"w": tensor}` of one axis, as torch.save writes it.
    fn tensor(elements: u8, offset: u8, size: u8, stride: u8) -> Vec<u8> {
        let mut pickle = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n(".to_vec();
        pickle.extend(b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK");
        pickle.extend([elements, b't', b'Q', b'K', offset, b'K', size, 0x85, b'K', stride, 0x85]);
        pickle.extend(b"\x89}tRs.");
        pickle
    }

    #[test]
    fn a_view_past_its_storage_is_refused() {
        let pickle = tensor(12, 2, 4, 3);
        let (name, view) = read(&pickle, 0, &[]).unwrap().remove(0);
        assert_eq!(
            (name.as_str(), view.offset, view.shape, view.strides),
            ("w", 2, vec![4], vec![3])
        );
        assert!(error(&tensor(12, 3, 4, 3)).contains("does not fit its storage of 12"));
        assert!(error(&tensor(12, 0, 13, 0)).contains("does not fit its storage of 12"));
    }

    #[test]
    fn pickles_one_after_the_other_share_what_they_made_but_no_memo() {
        // ["a", True] with the list in the memo, then a pickle that recalls it.
        let pickles = b"\x80\x02]q\x00(X\x01\0\0\0a\x88e.\x80\x02h\x00.";
        let mut machine = Machine::new(pickles, 0);
        let list = machine.run().unwrap();
        assert!(machine.run().unwrap_err().contains("recalls 0, never stored"));
        let list = machine.listed(list).unwrap();
        assert!(matches!(list, [Value::Text("a"), Value::Flag(true)]), "{list:?}");
    }

    #[test]
    fn views_stay_within_their_storage() {
        let view = |offset, shape: &[usize], strides: &[usize]| View {
            storage: "0",
            dtype: Dtype::F32,
            elements: 12,
            offset,
            shape: shape.into(),
            strides: strides.into(),
        };
        assert_eq!(view(0, &[3, 4], &[4, 1]).span(), Some(12));
        assert_eq!(view(4, &[2, 4], &[1, 2]).span(), Some(4 + 1 + 6 + 1));
        assert_eq!(view(0, &[13], &[0]).span(), None, "shown more often than stored");
        assert_eq!(view(1, &[usize::MAX, 0], &[1, 1]).span(), Some(1));
        assert_eq!(view(0, &[2], &[usize::MAX]).span(), None);
    }
}
