-- The token ids of a cached block, packed as four bytes each.
CREATE FUNCTION arc_halo.token_ids(packed bytea) RETURNS integer[]
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
BEGIN ATOMIC
    SELECT array_agg(('x' || encode(substr(packed, place, 4), 'hex'))::bit(32)::integer ORDER BY place)
      FROM generate_series(1, octet_length(packed), 4) AS place;
END
