#!/usr/bin/env bash
# Everything that needs a card, in one command of at most nine minutes: correctness of every kernel,
# compute-sanitizer on the small cases, then the tables of kernels, decoding, prefill and start-up with
# PyTorch in the same run.  Needs an NVIDIA GPU, nvcc and PyTorch; no network, and no cargo if packed.
#
#   bench/gpu.sh pack             on the machine with cargo: builds and packs into target/gpu (git-ignored)
#   bench/gpu.sh [run] [FOLDER]   on the machine with the card: results in FOLDER (bench/results/gpu)
#
# MEDFLAMINGO_MODEL=DIR uses that model folder for the end-to-end rows; otherwise a random-weight 9B
# folder is written to a temporary place (16.4 GB).  PYTHON names the interpreter that has PyTorch.
set -euo pipefail
cd "$(dirname "$0")/.."
pack=target/gpu
budget=540

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; }

# Newest test or bench executable of that name, as cargo reports it.
executable() { # kind name
    cargo "$1" --release --no-run --message-format=json "--$2" "$3" 2>/dev/null |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1
}

pack() {
    mkdir -p "$pack"
    cargo build --release
    cp target/release/medflamingo target/release/medflamingo-tools "$pack/"
    cp "$(executable test test kernels)" "$pack/test-kernels"
    cp "$(executable test test golden)" "$pack/test-golden"
    cp "$(executable bench bench kernels)" "$pack/bench-kernels"
    cp "$(executable bench bench engine)" "$pack/bench-engine"
    strip "$pack"/*
    git rev-parse HEAD > "$pack/commit"
    du -sh "$pack"
}

# Runs a step within what is left of the nine minutes; its failure is a line of the report.
step() { # name seconds output command...
    local name=$1 most=$2 output=$3 left=$((budget - SECONDS)) status=0
    shift 3
    if [ "$left" -lt 5 ]; then
        echo "| $name | not run: out of time |" >> "$folder/steps.md"
        return
    fi
    [ "$most" -lt "$left" ] || most=$left
    local begin=$SECONDS
    timeout "$most" "$@" > "$folder/$output" 2> "$folder/$output.log" || status=$?
    case $status in
        0) local word=passed ;;
        124) local word="stopped after $most s" ;;
        *) local word="failed ($status): $(tail -1 "$folder/$output.log" | tr '|' '/' | cut -c1-160)" ;;
    esac
    echo "| $name | $word, $((SECONDS - begin)) s |" >> "$folder/steps.md"
    echo "$name: $word" >&2
    [ "$status" = 0 ] || { [ "${output##*.}" != json ] || rm -f "$folder/$output"; failed=1; }
}

run() {
    folder=${1:-bench/results/gpu}
    local python=${PYTHON:-python3} failed=0 tmp
    if ! command -v nvidia-smi > /dev/null; then
        echo "gpu.sh: no nvidia-smi: this needs a machine with an NVIDIA GPU" >&2
        exit 2
    fi
    [ -x "$pack/bench-kernels" ] || pack
    mkdir -p "$folder"
    printf '| step | result |\n|---|---|\n' > "$folder/steps.md"
    tmp=$(mktemp -d)
    trap 'rm -rf "$tmp"' EXIT
    {
        nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.total --format=csv,noheader
        echo "commit $(cat "$pack/commit"), $(date -u +%Y-%m-%d), bench/gpu.sh run"
    } > "$folder/machine.txt"

    step "fatbins by this machine's nvcc" 120 build.txt kernels/build "$tmp/kernels"
    if [ -d "$tmp/kernels" ]; then export MEDFLAMINGO_KERNELS=$tmp/kernels; fi
    export MEDFLAMINGO_TEST_DEVICE=cuda
    step "every kernel: oracle, twin, card" 90 correctness.txt "$pack/test-kernels"
    step "golden set on the card" 60 golden.txt "$pack/test-golden"
    step "compute-sanitizer memcheck, small cases" 60 memcheck.txt \
        compute-sanitizer --tool memcheck --error-exitcode 9 "$pack/test-kernels" smallest
    step "compute-sanitizer racecheck, small cases" 60 racecheck.txt \
        compute-sanitizer --tool racecheck --error-exitcode 9 "$pack/test-kernels" smallest
    unset MEDFLAMINGO_TEST_DEVICE
    step "T0 ceilings" 30 ceilings.json "$python" bench/peers/gpu.py ceilings
    step "T1-T5 kernels, ours" 90 ours.json "$pack/bench-kernels" --device cuda --json
    step "T1-T5 kernels, peers" 120 peers.json "$python" bench/peers/gpu.py kernels "$folder/ours.json"
    echo "| T6 optimiser | not measured: training is not built yet |" >> "$folder/steps.md"

    local model=${MEDFLAMINGO_MODEL:-}
    if [ -z "$model" ]; then
        model=$tmp/9b
        step "9B folder, random weights" 90 synth.txt \
            "$pack/medflamingo-tools" synth --preset openflamingo-9b --output "$model"
    fi
    step "T7 decode and prefill, ours, T9 start-up" 90 engine.json \
        "$pack/bench-engine" --model "$model" --device cuda --json
    step "T7 decode and prefill, eager PyTorch" 90 eager.json "$python" bench/peers/gpu.py end-to-end
    local shard
    shard=$(find "$model" -name '*.safetensors' | sort | head -1)
    step "T9 one shard through PyTorch" 60 torch-load.json "$python" bench/peers/gpu.py load "$shard"
    "$python" bench/peers/gpu.py table "$folder"
    cat "$folder/steps.md" >> "$folder/gpu.md"
    echo "$folder/gpu.md, $folder/gpu.json ($SECONDS s)"
    exit "$failed"
}

case ${1:-run} in
    -h | --help) usage ;;
    pack) pack ;;
    run) run "${2:-}" ;;
    *) run "$1" ;;
esac
