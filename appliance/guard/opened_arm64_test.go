package guard

// arm64 has no calls from before the *at family.
var oldOpenings = openings[:0:0]

func openOld(string) error { return nil }
