"""Who is there: signed records, control links, replication, topology, routes."""
