#!/usr/bin/env bash
# From nothing to a table: experts, ESP at one image per class, scores, report, pictures. Every line is a plain command.
set -eu
export ESPCTL_HOME="${ESPCTL_HOME:-demo}" ESPCTL_EXPERTS_NETWORK=convnet3,width=32 ESPCTL_CONDENSE_NETWORK=convnet3,width=32 ESPCTL_EVALUATE_NETWORK=convnet3,width=32
for setting in HOME EXPERTS_NETWORK CONDENSE_NETWORK EVALUATE_NETWORK; do
	eval "echo \"\$ export ESPCTL_$setting=\$ESPCTL_$setting\""
done
run() {
	echo "\$ $*"
	"$@"
}
run espctl data info digits
run espctl experts build --dataset digits --count 3 --epochs 20 --batch 64
run espctl condense --dataset digits --ipc 1 --method esp --set steps=300 --set real_batch=64 --set segment=6 --set start_max=12
run espctl evaluate esp-digits-1 --protocol dsa --epochs 200 --seeds 5
run espctl report table1 --dataset digits
run espctl report images esp-digits-1 -o "$ESPCTL_HOME/esp-digits-1.png"
