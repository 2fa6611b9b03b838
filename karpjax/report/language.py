"""What a language model's run leaves beside its curves: samples."""
def draw(model, dataset, state, t, folder, *, length=256): pass
