#!/usr/bin/env bash
# From nothing to a table: experts, ESP at one image per class, scores, report, pictures. Every line is a plain command.
set -eu
export ESPCTL_HOME="${ESPCTL_HOME:-demo}"
echo "\$ export ESPCTL_HOME=$ESPCTL_HOME"
run() {
	echo "\$ $*"
	"$@"
}
run espctl experts build --dataset digits --network convnet3,width=32 --count 3 --epochs 20 --batch 64
run espctl condense --dataset digits --network convnet3,width=32 --ipc 1 --method esp \
	--set steps=300 --set real_batch=64 --set segment=6 --set start_max=12
run espctl evaluate esp-digits-1 --network convnet3,width=32 --protocol dsa --epochs 200 --seeds 5
run espctl report table1 --dataset digits
run espctl report images esp-digits-1 --output "$ESPCTL_HOME/esp-digits-1.png"
