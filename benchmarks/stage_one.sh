#!/usr/bin/env bash
# All CPU figures of stage one in docs/benchmarks.md, on this machine, one after the other; about 40 minutes on two
# cores, so give it a quiet machine. Each line of output names its command.
#
#     benchmarks/stage_one.sh [FOLDER]        FOLDER: on the disk that is to be measured; default: /tmp
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
folder=${1:-/tmp}
cores=$(nproc)

show() {
    echo
    echo "\$ $*"
    "$@"
}

echo "$(date -u) · $(nproc) cores · load $(cut -d' ' -f1 /proc/loadavg) · $($python --version)"
# the encoder: one thread (the table's figures), then all of them, then the memory of four images at once
show $python -m embedcache bench encode --model vit_b --rounds 4 --threads 1 --tiles 0
show $python -m embedcache bench encode --model vit_b --rounds 2 --threads "$cores" --tiles 0
show $python -m embedcache bench encode --model vit_b --rounds 1 --threads 1 --batch-size 4 --tiles 0 \
    --only stock_bf16 --only ours_bf16 --only ours_bf16_compiled
# everything but the encoder
show $python benchmarks/pipeline_ceiling.py --folder "$folder" --tiles 1024 --rounds 3
# the whole beside the bare encoder loop
show $python benchmarks/whole_encode.py --folder "$folder" --model vit_tiny --tiles 64 --rounds 3 --threads 1
show $python benchmarks/whole_encode.py --folder "$folder" --model vit_tiny --tiles 64 --rounds 3 --threads "$cores"
show $python benchmarks/whole_encode.py --folder "$folder" --model vit_b --tiles 12 --rounds 2 --threads "$cores"
# workers
show $python benchmarks/workers_speed.py --folder "$folder" --model vit_tiny --few 32 --many 160 --shard-tiles 8
show $python benchmarks/workers_speed.py --folder "$folder" --model vit_b --few 8 --many 24 --shard-tiles 2 --rounds 1
# what plan says beside what encode takes
show $python benchmarks/plan_accuracy.py --folder "$folder"
