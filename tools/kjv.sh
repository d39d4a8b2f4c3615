#!/usr/bin/env bash
# Writes the King James Version, one verse a line, to models/kjv.txt: the long real text of the demo and the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
[[ -s models/kjv.txt ]] && exit 0
mkdir -p models
bible -f gen1:1-rev22:21 >models/kjv.txt.part
mv models/kjv.txt.part models/kjv.txt
