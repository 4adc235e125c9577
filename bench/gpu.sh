#!/usr/bin/env bash
# Everything that needs a card, in one command of at most nine minutes: correctness of the kernels,
# compute-sanitizer, then the tables of kernels, decoding, prefill and start-up, with PyTorch in the
# same run. Needs an NVIDIA GPU, nvcc and PyTorch; no network, and no cargo if packed.
#
#   bench/gpu.sh pack            on a machine with cargo: programs into target/gpu, to be carried
#   bench/gpu.sh run [FOLDER]    on the machine with the card; results in FOLDER
#   bench/gpu.sh --dry-run       tries what can be tried without a card, and says what cannot
#
# FOLDER is bench/results/gpu unless given. MEDFLAMINGO_MODEL names a model folder for the rows from
# end to end; without it a 9B folder of random weights is written to TMPDIR (16.4 GB, and 13 GB
# quantised). PYTHON names the interpreter that has PyTorch.
set -euo pipefail
cd "$(dirname "$0")/.."
pack=target/gpu
budget=540
python=${PYTHON:-python3}

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; }
fail() { echo "bench/gpu.sh: $1" >&2; exit 2; }

# The executable that cargo builds of a test or bench.
executable() { # test|bench name
    cargo "$1" --release --no-run --message-format=json "--$1" "$2" 2>/dev/null |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -1
}

pack() {
    command -v cargo > /dev/null ||
        fail "no cargo here and nothing packed: run 'bench/gpu.sh pack' where Rust is, carry $pack"
    mkdir -p "$pack"
    cargo build --release
    cp target/release/medflamingo target/release/medflamingo-tools "$pack/"
    cp "$(executable test kernels)" "$pack/test-kernels"
    cp "$(executable bench kernels)" "$pack/bench-kernels"
    cp "$(executable bench engine)" "$pack/bench-engine"
    strip "$pack"/medflamingo "$pack"/medflamingo-tools "$pack"/test-* "$pack"/bench-*
    git rev-parse HEAD > "$pack/commit"
    du -sh "$pack"
}

# Runs a step within what is left of the nine minutes; its failure is a line of the report.
step() { # name seconds output command...
    local name=$1 most=$2 output=$3 left=$((budget - SECONDS)) status=0 word
    shift 3
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
    echo "$name: $word" >&2
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
        echo "commit $(cat "$pack/commit" 2>/dev/null || git rev-parse HEAD), $(date -u +%Y-%m-%d)"
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
    "$pack/medflamingo-tools" synth --preset tiny --dtype f32 --output "$1/tiny" > /dev/null
    for device in cpu cuda; do
        "$pack/medflamingo" generate --model "$1/tiny" --device "$device" --max-new-tokens 24 \
            --min-new-tokens 24 --prompt 'Question: Is it round? Answer:' --json |
            "$python" -c 'import json, sys; print(json.load(sys.stdin)["token_ids"])' > "$1/$device"
    done
    cmp "$1/cpu" "$1/cuda"
}

end_to_end() { # model name
    step "T7 decode and prefill, T9 opening, ours, $2" 70 "engine-$2.json" \
        "$pack/bench-engine" --model "$1" --reps 3 --json
}

run() {
    command -v nvidia-smi > /dev/null ||
        fail "no nvidia-smi: this needs a machine with an NVIDIA GPU; --dry-run does not"
    [ -x "$pack/bench-kernels" ] || pack
    local tmp
    tmp=$(mktemp -d)
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '$tmp'" EXIT
    begin "${1:-bench/results/gpu}" "$(nvidia-smi --format=csv,noheader \
        --query-gpu=name,driver_version,clocks.sm,clocks.mem,memory.total)"

    step "kernels by this machine's nvcc" 100 build.txt kernels/build "$tmp/kernels"
    if ls "$tmp"/kernels/*.fatbin > /dev/null 2>&1; then
        export MEDFLAMINGO_KERNELS=$tmp/kernels
    fi
    local tests=(env MEDFLAMINGO_TEST_DEVICE=cuda "$pack/test-kernels")
    local oracles=("${tests[@]}" oracle gemm adamw8)
    step "kernels: oracle, twin, card" 75 correctness.txt "${tests[@]}"
    step "a model: the same tokens as the host" 30 tokens.txt bench/gpu.sh same-tokens "$tmp"
    step "compute-sanitizer memcheck" 45 memcheck.txt \
        compute-sanitizer --tool memcheck --error-exitcode 9 "${oracles[@]}"
    step "compute-sanitizer racecheck" 45 racecheck.txt \
        compute-sanitizer --tool racecheck --error-exitcode 9 "${oracles[@]}"
    step "T0 ceilings, PyTorch" 20 ceilings.json "$python" bench/peers/gpu.py ceilings
    step "T1-T6 kernels, ours" 90 ours.json "$pack/bench-kernels" --device cuda --full --json
    step "T1-T6 kernels, peers" 90 peers.json "$python" bench/peers/gpu.py kernels \
        "$folder/ours.json"

    local model=${MEDFLAMINGO_MODEL:-$tmp/9b} weights
    if [ ! -d "$model" ]; then
        step "9B folder of random weights" 60 synth.txt \
            "$pack/medflamingo-tools" synth --preset med-flamingo-9b --output "$model"
    fi
    end_to_end "$model" bf16
    step "T7 decode and prefill, eager PyTorch" 60 eager.json "$python" bench/peers/gpu.py \
        end-to-end
    step "T9 a file of weights through PyTorch" 30 load.json "$python" bench/peers/gpu.py load \
        "$(find "$model" -name '*.safetensors' | sort | head -1)"
    for weights in int8 int4; do
        step "$weights folder" 60 "quantize-$weights.txt" "$pack/medflamingo-tools" quantize \
            "$model" --weights "$weights" --output "$tmp/$weights"
        end_to_end "$tmp/$weights" "$weights"
    done
    finish
    exit "$failed"
}

# What needs no card: the scripts, our bench on the processor, and the table made of it.
dry_run() {
    local tmp bench
    for script in bench/gpu.sh kernels/build; do bash -n "$script"; done
    PYTHONPYCACHEPREFIX=$(mktemp -d) "$python" -m py_compile bench/peers/gpu.py bench/peers/eager.py
    for program in nvidia-smi nvcc compute-sanitizer; do
        command -v "$program" > /dev/null || echo "not here: $program"
    done
    "$python" -c 'import torch' 2> /dev/null || echo "not here: PyTorch"
    bench=$pack/bench-kernels
    [ -x "$bench" ] || bench=$(executable bench kernels)
    tmp=$(mktemp -d)
    # shellcheck disable=SC2064
    trap "rm -rf '$tmp'" EXIT
    begin "$tmp" "$(uname -sm), a dry run"
    step "kernels, ours" 120 ours.json "$bench" --device cpu --quick --filter norm/ --json
    if "$python" -c 'import torch' 2> /dev/null; then
        step "kernels, peers" 120 peers.json "$python" bench/peers/gpu.py kernels \
            "$folder/ours.json" --device cpu
        step "eager PyTorch" 120 eager.json "$python" bench/peers/gpu.py end-to-end \
            --device cpu --tiny
    fi
    finish
    cat "$tmp/gpu.md"
    exit "$failed"
}

case ${1:-run} in
    -h | --help) usage ;;
    pack) pack ;;
    run) run "${2:-}" ;;
    --dry-run) dry_run ;;
    same-tokens) same_tokens "$2" ;; # a step of `run`
    *) usage >&2; exit 2 ;;
esac
