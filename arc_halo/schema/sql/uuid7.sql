-- A version 7 UUID: milliseconds since 1970, their fraction in twelve bits, 62 random bits (RFC 9562, 6.2 method 3).
CREATE FUNCTION arc_halo.uuid7() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE
BEGIN ATOMIC
    -- Eight bytes of time with the version between, then eight of a random UUID, whose variant bits are right already.
    SELECT encode(
               int8send((us / 1000 << 16) | (7 << 12) | (us % 1000 * 4096 / 1000))
               || substring(uuid_send(gen_random_uuid()) FROM 9),
               'hex'
           )::uuid
      FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS us) AS clock;
END
