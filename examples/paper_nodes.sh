#!/bin/bash
# One run at the published size on several nodes: `ARM=tied sbatch examples/paper_nodes.sh` from the repository's folder.
# All GPUs train the one run; the batch stays 512 sequences, so nodes x GPUs x micro_batches has to divide it (here
# 4 x 8 x 16 = 512: one sequence at a time on each). Submitted again after its time is up, it goes on from its last checkpoint.
#SBATCH --job-name=tying-paper
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00

set -euo pipefail
# A folder that all nodes see; rank 0 alone writes the run, the text's token cache is made once.
export TYING_HOME=${TYING_HOME:-$SLURM_SUBMIT_DIR}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# The published text was 30B tokens of Dolma v1.7. It is prepared once, beforehand, on one machine that reaches the network. Its
# URLs are published as urls/v1_7.txt in https://huggingface.co/datasets/allenai/dolma, source after source, and they are read in
# the order of the list; a shuffled list makes the first 30B tokens a sample of all sources:
#   shuf --random-source=v1_7.txt v1_7.txt > dolma_urls.txt
#   .venv/bin/tying-utils prepare --out /data/dolma --text @dolma_urls.txt --tokenizer allenai/OLMo-1B-hf --tokens 30e9
# Then CONFIG='{"corpus": "shards", "path": "/data/dolma"}'. Without CONFIG the text is WikiText-103; a small text of your own
# needs no preparation: CONFIG='{"corpus": "text", "path": "/data/text"}'.
srun .venv/bin/torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node 8 \
  --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID" \
  -m tying_utils train --profile paper --arm "${ARM:-tied}" --config "${CONFIG:-{\}}" --lines
