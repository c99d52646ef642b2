#!/bin/sh
# All measurements one after the other, on one core at low priority: seed by seed, so that what is there is useful early.
#
#     tests/bench/evidence/queue.sh DATA RESULTS
#
# DATA has imagenette2-160, stanford-cars-160 and weights/, RESULTS is the folder of the logs. Kill it anywhere, and start it again.
set -u
data=$1
results=$2
export OMP_NUM_THREADS=1
for seed in 42 43 44; do
    for name in cars bag_stack bag_tweaks bag_efficient chapter panda panda_toy; do
        nice -n 19 python -m tests.bench.evidence.$name --data "$data" --json "$results/evidence_$name.jsonl" --seed $seed
    done
done
# two more seeds of what is cheap
for seed in 45 46; do
    nice -n 19 python -m tests.bench.evidence.bag_tweaks --data "$data" --json "$results/evidence_bag_tweaks.jsonl" --seed $seed
done
