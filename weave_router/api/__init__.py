"""HTTP on a unix socket, metrics, the status page: what a running router tells and is told."""
