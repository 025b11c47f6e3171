-- Trigger function: forgets the weights_digest of each model whose weights a statement changed.
CREATE FUNCTION arc_halo.reset_weights_digest() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    -- Models are updated even if their digest is null: the row lock makes who computes one at this moment wait.
    IF TG_OP = 'INSERT' THEN
        UPDATE arc_halo.models SET weights_digest = NULL WHERE id IN (SELECT model_id FROM new_weights);
    ELSIF TG_OP = 'DELETE' THEN
        UPDATE arc_halo.models SET weights_digest = NULL WHERE id IN (SELECT model_id FROM old_weights);
    ELSE
        UPDATE arc_halo.models SET weights_digest = NULL
         WHERE id IN (
            SELECT changed.model_id
              FROM (SELECT model_id, name, tensor_id FROM old_weights
                    EXCEPT SELECT model_id, name, tensor_id FROM new_weights) AS changed
            UNION
            SELECT changed.model_id
              FROM (SELECT model_id, name, tensor_id FROM new_weights
                    EXCEPT SELECT model_id, name, tensor_id FROM old_weights) AS changed);
    END IF;
    RETURN NULL;
END
$$
