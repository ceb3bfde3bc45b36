#!/bin/sh
# Submit the night's job, or follow it if it runs already, and end as it ends. The id names the day, so that a tick that
# comes twice is one job; a day whose job failed may be submitted again, and goes on where it stopped.
set -eu
day="${DAY:-$(date -u +%F)}"
id="nightly-$day"
if state=$(ray job status "$id" 2>/dev/null); then
    case "$state" in
        *SUCCEEDED*) echo "$id: done already"; exit 0 ;;
        *PENDING* | *RUNNING*) ray job logs --follow "$id" ;;
        *) ray job delete "$id"; exec "$0" ;;
    esac
else
    # Reads BUNDLE, DATASETS and NUM_SAMPLES. The shipped spec takes the day as its seed: each night has samples of its own.
    ray job submit --submission-id "$id" -- python /opt/jobs/generate.py "$BUNDLE" --spec nightly --date "$day" \
        --set "out=$DATASETS/dt={{ date }}" --num-samples "$NUM_SAMPLES" --actors 1:16 --wait-timeout 3600 || true
fi
ray job status "$id" | grep -q SUCCEEDED
