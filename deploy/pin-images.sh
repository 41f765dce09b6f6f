#!/bin/sh
# Adds, to every image that is named by its tag, the digest that its registry has for it now. Look at
# the difference and commit it; from then on a tag that is moved changes nothing here.
set -eu
cd "$(dirname "$0")/.."
files="Dockerfile docker-compose.yml"
sed -nE 's/^(FROM|    image:) ([^ @]+:[^ @]+)( .*)?$/\2/p' $files | sort -u | while read -r image; do
    digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$image")
    sed -i.unpinned -E "s|^(FROM\|    image:) $image( .*)?\$|\1 $image@$digest\2|" $files
    echo "$image@$digest"
done
rm -f Dockerfile.unpinned docker-compose.yml.unpinned
