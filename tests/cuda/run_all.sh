#!/usr/bin/env bash
# Everything that gradscope has to do on a GPU, in two calls of at most ten minutes on a bare machine: one GPU,
# torch 2.11 or newer, torchvision, Python 3.12, the usual scientific packages, no network.
#
#   DATA_ROOT=... tests/cuda/run_all.sh prepare DIR1 DIR2
#       On any machine, before: make two folders to carry, about 44 MiB each. DATA_ROOT is where CIFAR-10 is
#       (torchvision's files, an image folder or an .npz). They hold its 50,000 training images and 100 test images
#       of each class, half each; DIR1 also has the wheels that the machine lacks, and the commit.
#   tests/cuda/run_all.sh check DIR1 OUT
#       First call, four minutes on an H100: the tests that need a GPU and one round of benchmarks. OUT: tests.log,
#       benchmarks.log, benchmarks.csv.
#   tests/cuda/run_all.sh study DIR1 DIR2 OUT --until SECONDS [--from OLD] [-- OPTIONS]
#       Second call: the recipes analyses/gpu-*.toml in order of worth, each trained and measured before the next
#       begins. It ends about SECONDS after it began. After every stage OUT holds everything so far, so that a kill
#       loses that stage alone: results.tar.gz (tables, manifests, records, logs, training histories), the four
#       checkpoints of gpu-cnn4, timings.csv, study.log; at most seven files of 15 MB. Called again on the same
#       machine it goes on; on another one it begins with what OLD, a copy of an earlier OUT, says is missing (an
#       unfinished training begins anew there). OPTIONS go to `gradscope study` for every recipe that RECIPES names,
#       such as --set measure.0.samples=100. Exit code 1 where anything is left to do or a recipe refuses an option.
#
# What to carry: the checkout with DIR1 to the first call, and with DIR2 to the second, since WORK keeps what is needed
# of DIR1. Variables: PYTHON (python3), DEVICE (cuda), RECIPES (names between blanks), WORK (a folder that lasts
# between the calls).
#
# Afterwards, on any machine:
#   tar xzf OUT/results.tar.gz
#   gradscope claims reports/gpu-cnn4 reports/gpu-paper     (any directories of results, from any machine)
#   gradscope report reports/gpu-cnn4                       (draws the figures that --no-figures left out)
set -euo pipefail
began=$(date +%s)
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
WORK=${WORK:-${TMPDIR:-/tmp}/gradscope-gpu}
WHEELS=(
    lightning-fabric lightning-utilities torchattacks loss-landscapes pydantic pydantic_core typing-inspection
    annotated-types
)
PLATFORMS=(manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux1_x86_64)
RECIPES=(${RECIPES:-gpu-cnn4 gpu-paper gpu-cnn6 gpu-seeds})

usage() {
    sed -n '2,/^set -/p' "$0" | sed '$d; s/^# \{0,1\}//'
    exit 2
}

refuse() {
    echo "run_all.sh: $1" >&2
    exit 2
}

prepare() {
    local one=$1 two=$2 wanted=()
    [ -e "${DATA_ROOT:-}" ] || refuse "DATA_ROOT must be where CIFAR-10 is, got '${DATA_ROOT:-}'"
    mkdir -p "$one/wheels" "$two"
    PYTHONPATH=$ROOT "$PYTHON" "$ROOT/tests/cuda/carry.py" pack "$DATA_ROOT" "$one" "$two"
    for name in "${WHEELS[@]}"; do wanted+=("$(grep -ix "$name==.*" "$ROOT/constraints.txt")"); done
    rm -f "$one"/wheels/*.whl
    "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        "${PLATFORMS[@]/#/--platform=}" -d "$one/wheels" "${wanted[@]}"
    git -C "$ROOT" rev-parse HEAD > "$one/commit"
    du -sb "$one" "$two"
}

# Keep DIR1, which the second call need not carry again, and make gradscope importable, with the wheels that the
# machine lacks.
set_up() {
    local one=$1
    if [ ! -e "$WORK/first" ]; then
        [ -e "$one/commit" ] || refuse "DIR1 must be a folder that prepare made, got '$one'; a new machine needs it"
        mkdir -p "$WORK"
        rm -rf "$WORK/copying" && cp -r "$one" "$WORK/copying"
        "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
            --target "$WORK/site" "$one"/wheels/*.whl
        mv "$WORK/copying" "$WORK/first"
    fi
    export PYTHONPATH=$ROOT:$WORK/site PYTHONUNBUFFERED=1 GRADSCOPE_COMMIT
    GRADSCOPE_COMMIT=$(cat "$WORK/first/commit")
}

check() {
    local one=$1 out=$2 status=0
    mkdir -p "$out"
    set_up "$one"
    cd "$ROOT"
    OMP_NUM_THREADS=4 "$PYTHON" -m pytest -W default -p no:cacheprovider -m cuda tests/cuda --durations=15 2>&1 \
        | tee "$out/tests.log" || status=1
    "$PYTHON" -m tests.benchmarks --device "$DEVICE" --rounds 1 --until 110 --out "$out/benchmarks.csv" 2>&1 \
        | tee "$out/benchmarks.log" || status=1
    return $status
}

# Copy what there is to OUT, each file in one step.
collect() {
    local out=$1 path
    (
        cd "$WORK"
        # Exit code 1: a file was replaced meanwhile, by another whole one.
        { find reports -type f ! -path '*/.tiles/*' ! -name '*.lock'; find checkpoints -name '*.history.csv'; } \
            | tar -czf "$out/.results" --warning=no-file-changed -T - || [ $? -eq 1 ]
        mv "$out/.results" "$out/results.tar.gz"
        for path in checkpoints/gpu-cnn4/{sl,rl,sl-adv,rl-adv}-s0.pt; do
            if [ -e "$path" ] && [ ! -e "$path.resume" ] && [ "$path" -nt "$out/$(basename "$path")" ]; then
                cp "$path" "$out/.checkpoint" && mv "$out/.checkpoint" "$out/$(basename "$path")"
            fi
        done
        "$PYTHON" "$ROOT/tests/cuda/timings.py" "$WORK" > "$out/.timings" && mv "$out/.timings" "$out/timings.csv"
    )
}

# Take up what an earlier call brought back from another machine.
restore() {
    local old=$1 path
    tar -xzf "$old/results.tar.gz" -C "$WORK"
    mkdir -p "$WORK/checkpoints/gpu-cnn4"
    for path in "$old"/*.pt; do [ ! -e "$path" ] || cp -n "$path" "$WORK/checkpoints/gpu-cnn4/"; done
}

study() {
    local one=$1 two=$2 out=$3 until="" old="" left recipe line status=0
    shift 3
    while [ $# -gt 0 ]; do
        case $1 in
            --until | --from)
                [ $# -ge 2 ] || refuse "$1 must have a value"
                if [ "$1" = --until ]; then until=$2; else old=$2; fi
                shift 2
                ;;
            --) shift; break ;;
            *) refuse "--until, --from or -- must follow OUT, got '$1'" ;;
        esac
    done
    [[ $until =~ ^[1-9][0-9]*$ ]] || refuse "--until must be a whole number of seconds, got '$until'"
    [ -z "$old" ] || [ -e "$old/results.tar.gz" ] || refuse "--from must be a copy of an earlier OUT, got '$old'"
    [ -e "$WORK/reports" ] || [ ! -e "$out/results.tar.gz" ] \
        || refuse "OUT must be new on a new machine, $out holds results; pass a copy of it with --from"
    set_up "$one"
    mkdir -p "$out" "$WORK/reports" "$WORK/checkpoints"
    out=$(cd "$out" && pwd)
    exec > >(tee -a "$out/study.log") 2>&1
    [ -z "$old" ] || [ -e "$WORK/restored" ] || { restore "$old"; touch "$WORK/restored"; }
    [ -e "$WORK/cifar10.npz" ] || {
        "$PYTHON" "$ROOT/tests/cuda/carry.py" unpack "$WORK/first" "$two" "$WORK/unpacking.npz"
        mv "$WORK/unpacking.npz" "$WORK/cifar10.npz"
    }
    for recipe in "${RECIPES[@]}"; do
        left=$((until - ($(date +%s) - began)))
        [ "$left" -gt 0 ] || break
        echo "== $recipe, $left s left"
        "$PYTHON" -m gradscope study "$ROOT/analyses/$recipe.toml" --data-root "$WORK/cifar10.npz" --device "$DEVICE" \
            --no-figures --until "$left" --out "$WORK/reports/$recipe" --checkpoints "$WORK/checkpoints/$recipe" "$@" \
            2>&1 | while IFS= read -r line; do
                echo "$line"
                case $line in *": done in "*) collect "$out" ;; esac
            done || status=1
        collect "$out"
    done
    echo "== ended after $(($(date +%s) - began)) s"
    return $status
}

case ${1:-} in
    prepare) [ $# -eq 3 ] || usage; prepare "$2" "$3" ;;
    check) [ $# -eq 3 ] || usage; check "$2" "$3" ;;
    study) [ $# -ge 4 ] || usage; shift; study "$@" ;;
    *) usage ;;
esac
