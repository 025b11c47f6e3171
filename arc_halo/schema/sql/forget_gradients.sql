-- Trigger function: weights let go of gradients that no checkpoint holds any more, so that prune may have them.
CREATE FUNCTION arc_halo.forget_gradients() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE arc_halo.model_weights AS w SET gradient_tensor_id = NULL
      FROM old_tensors AS o
     WHERE o.component = 'gradients' AND w.id = o.weight_id AND w.gradient_tensor_id = o.tensor_id
       AND NOT EXISTS (
        SELECT FROM arc_halo.checkpoint_tensors AS c
         WHERE c.weight_id = o.weight_id AND c.component = 'gradients' AND c.tensor_id = o.tensor_id);
    RETURN NULL;
END
$$
