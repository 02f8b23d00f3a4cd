#!/bin/sh
# The shop's front page: which version answers, and how often somebody came. Plain text for
# curl and scripts, a coloured page for browsers (they ask for text/html).
export PATH=/usr/sbin:/usr/bin
COUNTER=/var/lib/shop/visits
version=$(cat /etc/shop-version)

# One visitor at a time; the new number replaces the old file in one step.
count() {
    visits=$(($(cat $COUNTER 2>/dev/null || echo 0) + 1))
    echo $visits >$COUNTER.new && mv $COUNTER.new $COUNTER && sync
    echo $visits
}
exec 9>$COUNTER.lock
/usr/bin/flock -w 10 9
visits=$(count)
exec 9>&-

printf 'Cache-Control: no-store\r\n'
case $HTTP_ACCEPT in
    *text/html*)
        . /usr/share/shop/look
        printf 'Content-Type: text/html; charset=utf-8\r\n\r\n'
        cat <<PAGE
<!doctype html><title>shop $version</title>
<body style="font-family:sans-serif;text-align:center;color:#fff;background:$COLOUR">
<h1>$BANNER</h1><p>shop $version on $(hostname)</p><p>visits: $visits</p>
PAGE
        ;;
    *)
        printf 'Content-Type: text/plain; charset=utf-8\r\n\r\n'
        printf 'shop %s\nvisits: %s\n' "$version" "$visits"
        ;;
esac
