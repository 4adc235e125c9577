//! Reading golden folders: manifests, cases, and the conversion of their upstream files.

use medflamingo::convert::{NewHeadRows, Options, convert};
use medflamingo::device::Device;
use medflamingo::engine::{Engine, GenerateOptions, Image, Request};
use medflamingo::image::Preprocess;
use medflamingo::model::config::StoredDType;
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The host, or the card that `MEDFLAMINGO_TEST_DEVICE` names.
pub fn device() -> Device {
    std::env::var("MEDFLAMINGO_TEST_DEVICE").map_or(Device::Host, |card| card.parse().unwrap())
}

/// One model of a golden folder.
pub struct Model {
    pub name: String,
    folder: PathBuf,
    manifest: Value,
}

/// One recorded case.
pub struct Case {
    pub name: String,
    manifest: Value,
    bytes: Vec<u8>,
}

/// A tensor in f32; integers are exact.
pub struct Recorded {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

pub struct Greedy {
    pub new_ids: Vec<Vec<u32>>,
    pub max_new_tokens: usize,
}

pub struct Beam {
    pub new_ids: Vec<Vec<u32>>,
    pub sequences_scores: Vec<f64>,
    pub num_beams: usize,
    pub max_new_tokens: usize,
    pub length_penalty: f64,
}

/// What release 0.0.2 made of a case.
pub struct Old {
    pub case: Case,
    pub greedy_new_ids: Vec<Vec<u32>>,
}

/// Every model of every golden folder; at least those that come with the sources.
pub fn models() -> Vec<Model> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    // A test that was carried to another machine runs in the root of its sources.
    let root = if built.is_dir() { built } else { Path::new(".") };
    let mut roots = vec![root.join("tests/golden")];
    roots.extend(std::env::var_os("MEDFLAMINGO_GOLDEN").map(PathBuf::from));
    let mut found = Vec::new();
    for root in roots.iter().filter(|r| r.is_dir()) {
        let mut folders: Vec<_> =
            std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
        folders.sort();
        for folder in folders {
            let manifest = folder.join("golden/manifest.json");
            if !folder.join("flamingo.pt").exists() || !manifest.exists() {
                continue;
            }
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            found.push(Model { name, manifest: json(&manifest), folder });
        }
    }
    assert!(found.len() >= 3, "llama-tiny, mpt-tiny and neox-tiny come with the sources");
    found
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

impl Model {
    /// The model folder that the converter makes, in `dtype`; made by the first test, thread or
    /// process, of this program that asks for it.
    pub fn convert(&self, dtype: &str) -> PathBuf {
        let parent = self.folder.parent().unwrap().to_string_lossy().replace(['/', '.'], "_");
        let name = format!("golden-{parent}-{}-{dtype}", self.name);
        let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let lock = std::fs::File::create(output.with_extension("lock")).unwrap();
        lock.lock().unwrap();
        let when = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
        // What an older program made, or of older files, is made again.
        let upstream = ["flamingo.pt", "golden/manifest.json"].map(|file| self.folder.join(file));
        let program = std::env::current_exe().unwrap();
        let newest = upstream.iter().chain([&program]).map(|path| when(path).unwrap()).max();
        if when(&output) > newest {
            return output;
        }
        let stored = if dtype == "bf16" { StoredDType::Bf16 } else { StoredDType::F32 };
        let options = Options { output: output.clone(), ..self.conversion(stored) };
        convert(&options, &|_, _| {}).unwrap();
        output
    }

    /// How its upstream files become a model folder, but for where.
    pub fn conversion(&self, dtype: StoredDType) -> Options {
        let clip = std::fs::read_dir(self.folder.join("clip")).unwrap();
        let clip = clip.map(|e| e.unwrap().path()).find(|p| p.extension().unwrap() == "pt");
        Options {
            language_model: self.folder.join("lm"),
            vision: clip.unwrap(),
            flamingo: self.folder.join("flamingo.pt"),
            output: PathBuf::new(),
            dtype,
            new_head_rows: NewHeadRows::default(),
            activation: None,
            max_shard: 5 << 30,
            is_forced: true,
        }
    }

    pub fn cases(&self) -> Vec<Case> {
        let cases = self.manifest["cases"].as_array().unwrap();
        let with_logits = cases.iter().filter(|c| c["name"] != "cached_media");
        with_logits.map(|c| self.case("golden", c)).collect()
    }

    pub fn cached_media(&self) -> Option<Case> {
        let cases = self.manifest["cases"].as_array().unwrap();
        cases.iter().find(|c| c["name"] == "cached_media").map(|c| self.case("golden", c))
    }

    /// Cases with what release 0.0.2 made of them.
    pub fn cases_of_0_0_2(&self) -> Vec<(Case, Old)> {
        let path = self.folder.join("golden_v002/manifest.json");
        if !path.exists() {
            return Vec::new();
        }
        let old = json(&path);
        let found = |case: Case| {
            let entry = old["cases"].as_array().unwrap().iter().find(|c| c["name"] == case.name)?;
            let greedy_new_ids = id_rows(&entry["greedy_new_ids"]);
            let old = Old { case: self.case("golden_v002", entry), greedy_new_ids };
            Some((case, old))
        };
        self.cases().into_iter().filter_map(found).collect()
    }

    fn case(&self, folder: &str, entry: &Value) -> Case {
        let file = self.folder.join(folder).join(entry["file"].as_str().unwrap());
        Case {
            name: entry["name"].as_str().unwrap().to_string(),
            manifest: entry.clone(),
            bytes: std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())),
        }
    }

    pub fn end_of_chunk(&self) -> u32 {
        self.manifest["special_ids"]["<|endofchunk|>"].as_u64().unwrap() as u32
    }

    /// Where its recordings are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Upstream's pixels of an image, (3, S, S), as the bytes that stand for exactly them.
    pub fn pixels(&self, index: usize) -> Vec<u8> {
        let bytes = std::fs::read(self.folder().join("golden/pixels.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let all = recorded(&file, file.names()[0]);
        let each = all.shape[1..].iter().product::<usize>();
        let image = &all.data[index * each..(index + 1) * each];
        let levels = Preprocess::clip(1).levels();
        let byte = |(i, x): (usize, &f32)| {
            levels[3 * i / each].iter().position(|level| level == x).unwrap() as u8
        };
        image.iter().enumerate().map(byte).collect()
    }

    /// An image of the recordings, prepared for `engine`.
    pub fn image(&self, engine: &Engine, index: usize) -> Image {
        let name = self.manifest["image_order"][index].as_str().unwrap();
        let path = self.folder.parent().unwrap().join("images").join(name);
        engine.image(&std::fs::read(path).unwrap()).unwrap()
    }

    /// The case's row as a user would ask it: the prompt's text and the image files.
    pub fn request(
        &self,
        engine: &Engine,
        case: &Case,
        row: usize,
        options: GenerateOptions,
    ) -> Request {
        let indices = case.image_indices(row);
        let pixels = indices.iter().map(|&i| self.image(engine, i)).collect();
        engine.request(case.prompt(row), pixels, options).unwrap()
    }
}

impl Case {
    pub fn rows(&self) -> usize {
        self.manifest["prompts"].as_array().unwrap().len()
    }

    pub fn prompt(&self, row: usize) -> &str {
        self.manifest["prompts"][row].as_str().unwrap()
    }

    pub fn image_indices(&self, row: usize) -> Vec<usize> {
        let row = self.manifest["image_indices"][row].as_array().unwrap();
        row.iter().map(|i| i.as_u64().unwrap() as usize).collect()
    }

    /// Ids without left padding.
    pub fn ids(&self, row: usize) -> Vec<u32> {
        id_rows(&self.manifest["input_ids"])[row][self.left_pads(row)..].to_vec()
    }

    pub fn left_pads(&self, row: usize) -> usize {
        let Some(mask) = self.manifest["attention_mask"][row].as_array() else { return 0 };
        mask.iter().take_while(|m| m.as_u64() == Some(0)).count()
    }

    pub fn tensor_names(&self) -> Vec<String> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        file.names().into_iter().map(str::to_string).collect()
    }

    pub fn maybe(&self, name: &str) -> Option<Recorded> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        file.names().contains(&name).then(|| recorded(&file, name))
    }

    pub fn tensor(&self, name: &str) -> Recorded {
        self.maybe(name).unwrap_or_else(|| panic!("{}: no tensor {name}", self.name))
    }

    /// The last `count` entries of batch row `row`: those that are not left padding.
    pub fn tail(&self, name: &str, row: usize, count: usize) -> Vec<f32> {
        let t = self.tensor(name);
        let each: usize = t.shape[2..].iter().product();
        let end = (row + 1) * t.shape[1] * each;
        t.data[end - count * each..end].to_vec()
    }

    /// The first `count` images of batch row `row`; the rest are zero padding.
    pub fn head(&self, name: &str, row: usize, count: usize) -> Vec<f32> {
        let t = self.tensor(name);
        // Blocks of the tower are recorded with all images in one dimension.
        if t.shape[0] != self.rows() || name.starts_with("vision.block") || name == "vision.ln_pre"
        {
            return t.data;
        }
        let each: usize = t.shape[2..].iter().product();
        let start = row * t.shape[1] * each;
        t.data[start..start + count * each].to_vec()
    }

    pub fn greedy(&self) -> Option<Greedy> {
        let g = self.manifest.get("greedy")?;
        let stable = g["stable_under_1e-5_relative_weight_noise"].as_bool().unwrap();
        assert!(stable, "{}: unstable greedy recording", self.name);
        let max_new_tokens = g["max_new_tokens"].as_u64().unwrap() as usize;
        Some(Greedy { new_ids: id_rows(&g["new_ids"]), max_new_tokens })
    }

    pub fn beams(&self) -> Vec<Beam> {
        let Some(beams) = self.manifest["beam"].as_array() else { return Vec::new() };
        let beam = |b: &Value| Beam {
            new_ids: id_rows(&b["new_ids"]),
            sequences_scores: serde_json::from_value(b["sequences_scores"].clone()).unwrap(),
            num_beams: b["num_beams"].as_u64().unwrap() as usize,
            max_new_tokens: b["max_new_tokens"].as_u64().unwrap() as usize,
            length_penalty: b["length_penalty"].as_f64().unwrap(),
        };
        beams.iter().map(beam).collect()
    }

    /// RMS difference of PyTorch's bf16 logits from its f32 ones.
    pub fn bfloat16_rms(&self) -> Option<f64> {
        self.manifest["bfloat16_run"]["logits_rms_diff"].as_f64()
    }
}

fn id_rows(value: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn recorded(file: &SafeTensors<'_>, name: &str) -> Recorded {
    let t = file.tensor(name).unwrap();
    let data = match t.dtype() {
        safetensors::Dtype::F32 => {
            t.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        }
        safetensors::Dtype::I64 => {
            t.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f32).collect()
        }
        other => panic!("{name}: {other:?}"),
    };
    Recorded { shape: t.shape().to_vec(), data }
}

/// |a - b| <= absolute + relative |b|, everywhere.
pub fn close(ours: &[f32], expected: &[f32], absolute: f32, relative: f32, at: &str) {
    assert_eq!(ours.len(), expected.len(), "{at}");
    let worst = ours
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs() - relative * b.abs())
        .fold(0.0, |m: f32, d| if d.is_nan() { f32::INFINITY } else { m.max(d) });
    assert!(worst <= absolute, "{at}: off by {worst:e} beyond {relative:e} relative");
}

/// |ours - expected| / |expected| in the L2 norm.
pub fn relative_l2(ours: &[f32], expected: &[f32]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut ours.iter().zip(expected).map(|(a, b)| (a - b) as f64));
    difference / norm(&mut expected.iter().map(|&b| b as f64))
}
