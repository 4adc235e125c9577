//! Named tensors of a device as a safetensors file, a few MiB at a time.

use super::disk::Sink;
use crate::tensor::View;
use crate::{DType, Error, Result};
use serde_json::{Map, Value, json};

/// A tensor under the name that it has in a file.
pub type Named<'a> = (String, View<'a>);

/// The data begins at a multiple of this, so that it can be used where the file is mapped.
const ALIGN: usize = 64;
/// Bytes copied from a device at a time.
const CHUNK: usize = 8 << 20;

fn kind(name: &str, dtype: DType) -> Result<&'static str> {
    Ok(match dtype {
        DType::F32 => "F32",
        DType::BF16 => "BF16",
        DType::F16 => "F16",
        DType::U8 => "U8",
        DType::I8 => "I8",
        DType::I32 => "I32",
        DType::I64 => "I64",
        other => return Err(Error::invalid(name, "a type that safetensors has", other)),
    })
}

/// The header of a file of `tensors`, its length before it.
fn header(tensors: &[Named<'_>]) -> Result<Vec<u8>> {
    let (mut map, mut at) = (Map::new(), 0);
    map.insert("__metadata__".into(), json!({"format": "pt"}));
    for (name, view) in tensors {
        let (shape, end) = (view.shape(), at + view.bytes());
        let item = json!({
            "dtype": kind(name, view.dtype())?,
            "shape": shape.sizes(),
            "data_offsets": [at, end],
        });
        if map.insert(name.clone(), item).is_some() {
            return Err(Error::invalid("tensor names", "each once", format!("`{name}` twice")));
        }
        at = end;
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    text.resize((8 + text.len()).next_multiple_of(ALIGN) - 8, b' ');
    Ok([&(text.len() as u64).to_le_bytes()[..], &text].concat())
}

/// Bytes of the file that [`write`] makes.
///
/// # Errors
/// As [`write`].
pub fn bytes(tensors: &[Named<'_>]) -> Result<u64> {
    let data: usize = tensors.iter().map(|(_, view)| view.bytes()).sum();
    Ok((header(tensors)?.len() + data) as u64)
}

/// Passes a whole file on to `sink`.
///
/// # Errors
/// A name twice, a type that the format lacks, and those of the device and of `sink`.
pub fn write(tensors: &[Named<'_>], sink: &mut Sink<'_>) -> Result<()> {
    sink(&header(tensors)?)?;
    for (_, view) in tensors {
        let (rows, cols) = (view.rows(), view.cols());
        // Wide rows are cut, narrow ones taken together.
        let each = (CHUNK / view.dtype().size()).min(cols).max(1);
        let some = (CHUNK / (each * view.dtype().size())).max(1);
        for row in (0..rows).step_by(some) {
            for col in (0..cols).step_by(each) {
                let part = row..rows.min(row + some);
                sink(&view.block(part, col..cols.min(col + each))?.to_bytes()?)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::device::Stream;
    use crate::tensor::Tensor;

    #[test]
    fn tensors_of_any_form_read_back() {
        let stream = Stream::host(1);
        let long: Vec<f32> = (0..CHUNK / 4 + 7).map(|i| i as f32).collect();
        let tall: Vec<u8> = (0..3 * CHUNK / 2).map(|i| i as u8).collect();
        let long = Tensor::upload(&stream, &long, &[1, long.len()]).unwrap();
        let tall = Tensor::upload(&stream, &tall, &[tall.len() / 2, 2]).unwrap();
        let cell = Tensor::upload(&stream, &[half::bf16::ONE], &[1]).unwrap();
        let part = tall.view().block(3..5, 0..1).unwrap();
        let all = [
            ("long".into(), long.view()),
            ("tall".into(), tall.view()),
            ("part".into(), part),
            ("cell".into(), cell.view()),
        ];
        let mut file = Vec::new();
        write(&all, &mut |bytes| {
            file.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
        assert_eq!(file.len() as u64, bytes(&all).unwrap());
        let read = Checkpoint::from_bytes("test", file).unwrap();
        for (name, view) in &all {
            let entry = read.get(name).unwrap();
            assert_eq!(entry.shape, view.shape().sizes(), "{name}");
            assert_eq!(entry.dtype, view.dtype());
            assert!(entry.to_vec() == view.to_bytes().unwrap(), "{name}");
        }
        let twice = [("a".to_string(), cell.view()), ("a".to_string(), cell.view())];
        assert!(write(&twice, &mut |_| Ok(())).is_err());
    }
}
