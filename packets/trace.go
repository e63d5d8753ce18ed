package packets

// Trace returns one line that describes p.
func Trace(p Packet) string { return string(AppendTrace(nil, p)) }

// AppendTrace appends what Trace returns to dst and returns the extended slice.
func AppendTrace(dst []byte, p Packet) []byte { return append(dst, p.Type().String()...) }
