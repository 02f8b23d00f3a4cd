#!/bin/bash
# A VM reset the way one does it without poclab: a new overlay on another base, the domain
# defined with it, the old QEMU ended, a new one started, the old overlay deleted.
#
#   by-hand.sh DOMAIN BASE NEW-OVERLAY [OLD-OVERLAY]
set -euo pipefail
domain=$1 base=$2 new=$3 old=${4:-}
work=$(mktemp)
trap 'rm -f "$work"' EXIT

qemu-img create -q -f qcow2 -b "$base" -F qcow2 "$new"
# The system disk is the first one; its backing file is the first source inside it.
virsh -q dumpxml --inactive "$domain" | awk -v new="$new" -v base="$base" '
    /<source file=/ && seen < 2 { sub(/file=.[^ ]*\047/, "file=\047" (seen++ ? base : new) "\047") }
    { print }' >"$work"
virsh -q define "$work"
began=$EPOCHREALTIME
virsh -q destroy "$domain"
ended=$EPOCHREALTIME
virsh -q start --reset-nvram "$domain"
if [ -n "$old" ]; then
    rm -f "$old"
fi
awk -v a="$began" -v b="$ended" 'BEGIN { printf "virsh destroy took %.6f\n", b - a }'
