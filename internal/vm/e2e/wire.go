package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// A file of pcap begins with 24 bytes, and each frame with 16, of which the third
// word is how many bytes of it follow. Source: the pcap-savefile man page of libpcap.
const (
	pcapHead  = 24
	frameHead = 16
)

// frames lists the frames that a machine has sent: their types and destinations.
// A file that QEMU had no time to finish ends with a torn one, which counts.
func frames(file string) (out []string, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := io.ReadFull(f, make([]byte, pcapHead)); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, nil // cut before anything was written
		}
		return nil, fmt.Errorf("%s is no pcap file: %w", file, err)
	}
	for {
		h := make([]byte, frameHead)
		if _, err := io.ReadFull(f, h); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return append(out, "a torn frame"), nil
		}
		b := make([]byte, binary.LittleEndian.Uint32(h[8:]))
		n, _ := io.ReadFull(f, b)
		if n < 14 {
			return append(out, "a torn frame"), nil
		}
		out = append(out, fmt.Sprintf("to %x of type %#04x, %d bytes", b[:6], binary.BigEndian.Uint16(b[12:]), len(b)))
	}
}
