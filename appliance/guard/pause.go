package guard

// Pause freezes the scope until it is called with false, whatever room its
// events have, and tells whether it could. Other reasons to freeze it stay what
// they are.
func (w *Watch) Pause(on bool) bool {
	w.g.mu.Lock()
	defer w.g.mu.Unlock()
	if !w.seated {
		return !on // it is closed, and nobody's any more
	}
	b := w.g.brakes[w.slot].Load()
	if b == nil {
		return false
	}
	b.set(ringCount, on)
	return true
}
