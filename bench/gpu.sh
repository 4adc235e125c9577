#!/usr/bin/env bash
# Everything that needs a card, in one command of at most nine minutes: correctness of the kernels,
# compute-sanitizer, which tiles are fastest, and with those the tables of kernels, decoding, prefill
# and start-up, with PyTorch in the same run. Needs an NVIDIA GPU, nvcc and PyTorch; no network, and
# no cargo if packed.
#
#   bench/gpu.sh pack            on a machine with cargo: programs into target/gpu, to be carried
#   bench/gpu.sh run [FOLDER]    on the machine with the card; results in FOLDER
#   bench/gpu.sh steps           names of the steps; STEPS="correctness kernels" runs only those
#   bench/gpu.sh --dry-run       tries what can be tried without a card, and says what cannot
#
# FOLDER is bench/results/gpu unless given. MEDFLAMINGO_MODEL names a model folder for the rows from
# end to end; without it a 9B folder of random weights is written to TMPDIR (16.4 GB, and 13 GB
# quantised) while correctness is checked. PYTHON names the interpreter that has PyTorch, BUDGET
# another number of seconds.
set -euo pipefail
cd "$(dirname "$0")/.."
pack=target/gpu
programs=$pack/programs
budget=${BUDGET:-540}
python=${PYTHON:-python3}

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; }
fail() { echo "bench/gpu.sh: $1" >&2; exit 2; }

# The executable that cargo builds of a test or bench; cargo names those of binaries too.
executable() { # test|bench name
    local release=()
    [ "$1" = bench ] || release=(--release)
    cargo "$1" "${release[@]}" --no-run --message-format=json "--$1" "$2" 2>/dev/null |
        python3 -c 'import json, sys
for line in filter(lambda line: line.startswith("{"), sys.stdin):
    message = json.loads(line)
    target = message.get("target", {})
    if message.get("executable") and (target["kind"], target["name"]) == ([sys.argv[1]], sys.argv[2]):
        print(message["executable"])' "$1" "$2"
}

# One archive: the programs are much alike.
pack() {
    command -v cargo > /dev/null ||
        fail "no cargo here and nothing packed: run 'bench/gpu.sh pack' where Rust is, carry $pack"
    rm -rf "$pack"
    mkdir -p "$programs"
    local to=$programs
    cargo build --release
    cp target/release/medflamingo target/release/medflamingo-tools "$to/"
    cp "$(executable test kernels)" "$to/test-kernels"
    cp "$(executable test golden)" "$to/test-golden"
    cp "$(executable test train)" "$to/test-train"
    cp "$(executable bench kernels)" "$to/bench-kernels"
    cp "$(executable bench engine)" "$to/bench-engine"
    cp "$(executable bench train)" "$to/bench-train"
    strip "$to"/*
    git rev-parse HEAD > "$to/commit"
    (cd "$to" && python3 -c 'import lzma, sys, tarfile
big = [{"id": lzma.FILTER_LZMA2, "preset": 4, "dict_size": 128 << 20}]
with lzma.open(sys.argv[1], "wb", filters=big) as f, tarfile.open(fileobj=f, mode="w") as t:
    t.add(".")' ../programs.tar.xz)
    rm -r "$to"
    du -sh "$pack"
}

unpack() {
    [ -e "$pack/programs.tar.xz" ] || pack
    # From a step of `run` too, while programs run.
    [ ! "$programs/commit" -nt "$pack/programs.tar.xz" ] || return 0
    mkdir -p "$programs"
    "$python" -m tarfile -e "$pack/programs.tar.xz" "$programs"
    chmod +x "$programs"/*
    # Folders that tests make are newer than their programs, whatever the clock that packed them.
    touch "$programs"/*
}

# Runs a step within what is left of the nine minutes; its failure is a line of the report.
step() { # id name seconds output command...
    local id=$1 name=$2 most=$3 output=$4 left=$((budget - SECONDS)) status=0 word
    shift 4
    case " ${STEPS:-$id} " in *" $id "*) ;; *) return 0 ;; esac
    if [ "$left" -lt 5 ]; then
        echo "| $name | not run: out of time |" >> "$folder/steps.md"
        return
    fi
    [ "$most" -lt "$left" ] || most=$left
    local begin=$SECONDS
    timeout "$most" "$@" > "$folder/$output" 2> "$folder/$output.log" || status=$?
    case $status in
        0) word=passed ;;
        124) word="stopped after $most s" ;;
        *) word="failed ($status): $(tail -1 "$folder/$output.log" | tr '|' '/' | cut -c1-160)" ;;
    esac
    echo "| $name | $word, $((SECONDS - begin)) s |" >> "$folder/steps.md"
    echo "$name: $word, $((SECONDS - begin)) s" >&2
    if [ "$status" != 0 ]; then
        failed=1
        [ "${output##*.}" != json ] || rm -f "$folder/$output"
    fi
}

# Starts the report.
begin() { # folder machine
    folder=$1 failed=0
    mkdir -p "$folder"
    rm -f "$folder"/*.json "$folder"/*.log
    printf '| step | result |\n|---|---|\n' > "$folder/steps.md"
    {
        echo "$2"
        echo "commit $(cat "$programs/commit" 2>/dev/null || git rev-parse HEAD), $(date -u +%Y-%m-%d)"
    } > "$folder/machine.txt"
}

# Ends it: one Markdown table and one JSON file.
finish() {
    "$python" bench/peers/gpu.py table "$folder"
    { echo; cat "$folder/steps.md"; } >> "$folder/gpu.md"
    echo "$folder/gpu.md, $folder/gpu.json ($SECONDS s)"
}

# The same tokens on both devices, of a small model in f32.
same_tokens() { # folder
    local device
    "$programs/medflamingo-tools" synth --preset tiny --dtype f32 --output "$1/tiny" > /dev/null
    for device in cpu cuda; do
        "$programs/medflamingo" generate --model "$1/tiny" --device "$device" \
            --max-new-tokens 24 --min-new-tokens 24 --prompt 'Question: Is it round? Answer:' \
            --json | "$python" -c 'import json, sys; print(json.load(sys.stdin)["token_ids"])' \
            > "$1/$device"
    done
    cmp "$1/cpu" "$1/cuda"
}

# Folders of the 9B shape, while kernels run. `$1/made` says when.
models() { # folder
    local model=${MEDFLAMINGO_MODEL:-$1/9b} weights
    [ -d "$model" ] ||
        "$programs/medflamingo-tools" synth --preset med-flamingo-9b --output "$model"
    for weights in int8 int4; do
        "$programs/medflamingo-tools" quantize "$model" --weights "$weights" \
            --output "$1/$weights" &
    done
    wait
    touch "$1/made"
}

# Which tiles are fastest, for people and for the steps that follow in this run.
measure_tiles() { # medflamingo-tools arguments...
    local tools=$1
    shift
    case " ${STEPS:-tiles} " in *" tiles "*) ;; *) return 0 ;; esac
    rm -f "$folder/tiles.txt"
    step tiles "tiles of products against each other" 60 tiles.log \
        "$tools" tiles "$@" --all --output "$folder/tiles.txt"
    # It is there whole or not at all.
    if [ -e "$folder/tiles.txt" ]; then
        export MEDFLAMINGO_TILES=$folder/tiles.txt
    fi
}

run() {
    command -v nvidia-smi > /dev/null ||
        fail "no nvidia-smi: this needs a machine with an NVIDIA GPU; --dry-run does not"
    unpack
    # Where tests write, if this checkout never ran any.
    mkdir -p target/tmp
    local tmp weights
    tmp=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '$tmp'" EXIT
    begin "${1:-bench/results/gpu}" "$(nvidia-smi --format=csv,noheader \
        --query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.total)"
    case " ${STEPS:-decode} " in
        *" decode "* | *" train "*) models "$tmp" > "$folder/models.txt" 2>&1 & ;;
        *) touch "$tmp/made" ;;
    esac

    step build "kernels by this machine's nvcc" 100 build.txt kernels/build "$tmp/kernels"
    if ls "$tmp"/kernels/*.fatbin > /dev/null 2>&1; then
        export MEDFLAMINGO_KERNELS=$tmp/kernels
    fi
    # A process a test: an error of the card fails what comes after it in the same process.
    local tests=(env MEDFLAMINGO_TEST_DEVICE=cuda "$python" bench/peers/isolated.py)
    step correctness "kernels: oracle, twin, card" 120 correctness.txt \
        "${tests[@]}" --limit 90 --total 115 "$programs/test-kernels"
    step golden "PyTorch's recordings on the card" 60 golden.txt \
        "${tests[@]}" --total 55 --skip emulated "$programs/test-golden"
    step gradients "PyTorch's training on the card" 60 gradients.txt \
        "${tests[@]}" --total 55 "$programs/test-train" recorded
    step tokens "a model: the same tokens as the host" 30 tokens.txt bench/gpu.sh same-tokens "$tmp"
    tests+=(--total 40 --prefix)
    local oracles=("$programs/test-kernels" oracle gemm adamw8)
    local check="compute-sanitizer --error-exitcode 9"
    step memcheck "compute-sanitizer memcheck" 45 memcheck.txt \
        "${tests[@]}" "$check --tool memcheck --report-api-errors no" "${oracles[@]}"
    step racecheck "compute-sanitizer racecheck" 45 racecheck.txt \
        "${tests[@]}" "$check --tool racecheck" "${oracles[@]}"
    measure_tiles "$programs/medflamingo-tools" --device cuda
    step kernels "T0 ceilings, PyTorch" 20 ceilings.json "$python" bench/peers/gpu.py ceilings
    step kernels "T1-T6 kernels, ours" 90 ours.json \
        "$programs/bench-kernels" --device cuda --full --json
    step peers "T1-T6 kernels, peers" 90 peers.json "$python" bench/peers/gpu.py kernels \
        "$folder/ours.json"

    local first=decode
    case " ${STEPS-} " in *" train "*) first=train ;; esac
    step "$first" "9B folders of random weights, the rest" 120 models.log \
        bash -c "until [ -e '$tmp/made' ]; do sleep 0.2; done"
    local model=${MEDFLAMINGO_MODEL:-$tmp/9b} sequences
    for sequences in 4 6; do
        step train "T8 a training step, $sequences x 2048 tokens" 60 "train-$sequences.json" \
            "$programs/bench-train" --model "$model" --sequences "$sequences" --tokens 2048 \
            --images 3 --bits 8 --reps 2 --json
    done
    for weights in bf16 int8 int4; do
        [ "$weights" = bf16 ] || model=$tmp/$weights
        step decode "T7 decode and prefill, T9 opening, ours, $weights" 70 "engine-$weights.json" \
            "$programs/bench-engine" --model "$model" --reps 3 --batches 8,32 --json
    done
    model=${MEDFLAMINGO_MODEL:-$tmp/9b}
    step eager "T7 decode and prefill, eager PyTorch" 60 eager.json "$python" \
        bench/peers/gpu.py end-to-end
    step load "T9 a file of weights through PyTorch" 30 load.json "$python" bench/peers/gpu.py load \
        "$(find "$model" -name '*.safetensors' 2> /dev/null | sort | head -1)"
    finish
    exit "$failed"
}

# What needs no card: the scripts, our bench on the processor, and the table made of it.
dry_run() {
    local tmp bench tools
    for script in bench/gpu.sh kernels/build; do bash -n "$script"; done
    PYTHONPYCACHEPREFIX=$(mktemp -d) "$python" -m py_compile bench/peers/gpu.py \
        bench/peers/eager.py bench/peers/isolated.py
    for program in nvidia-smi nvcc compute-sanitizer; do
        command -v "$program" > /dev/null || echo "not here: $program"
    done
    "$python" -c 'import torch' 2> /dev/null || echo "not here: PyTorch"
    bench=$programs/bench-kernels tools=$programs/medflamingo-tools
    if ! [ -x "$bench" ]; then
        # cargo builds binaries beside a bench.
        bench=$(executable bench kernels) tools=target/release/medflamingo-tools
    fi
    tmp=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$tmp'" EXIT
    begin "$tmp" "$(uname -sm), a dry run"
    # An estimate: it tries the step and the file.
    measure_tiles "$tools" --chip h200
    step ours "kernels, ours" 120 ours.json "$bench" --device cpu --quick --filter norm/ --json
    if "$python" -c 'import torch' 2> /dev/null; then
        step peers "kernels, peers" 120 peers.json "$python" bench/peers/gpu.py kernels \
            "$folder/ours.json" --device cpu
        step eager "eager PyTorch" 120 eager.json "$python" bench/peers/gpu.py end-to-end \
            --device cpu --tiny
    fi
    finish
    cat "$tmp/gpu.md"
    exit "$failed"
}

case ${1:-run} in
    -h | --help) usage ;;
    pack) pack ;;
    steps) sed -n 's/^ *step \([a-z]*\) .*/\1/p' "$0" | sort -u ;;
    run) run "${2:-}" ;;
    --dry-run) dry_run ;;
    same-tokens) same_tokens "$2" ;; # a step of `run`
    *) usage >&2; exit 2 ;;
esac
