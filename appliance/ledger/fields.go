package ledger

import (
	"errors"
	"net/netip"
	"strconv"
)

// accessor writes one field of a Record into an event and reads it back.
type accessor struct {
	name field
	put  putter
	read func(*Record, any) error
}

var errType = errors.New("value has the wrong type")

func text(name field, p func(*Record) *string) accessor {
	return accessor{
		name,
		func(b []byte, e *entry) []byte { return appendWord(b, *p(e.Record)) },
		func(r *Record, v any) error {
			s, ok := v.(string)
			if !ok {
				return errType
			}
			*p(r) = s
			return nil
		},
	}
}

func number(name field, p func(*Record) *int) accessor {
	return accessor{
		name,
		func(b []byte, e *entry) []byte { return appendNumber(b, *p(e.Record)) },
		func(r *Record, v any) error {
			n, ok := v.(int64)
			if !ok {
				return errType
			}
			*p(r) = int(n)
			return nil
		},
	}
}

var fields = []accessor{
	text(fAgent, func(r *Record) *string { return &r.Agent }),
	text(fPolicy, func(r *Record) *string { return &r.Policy }),
	text(fReason, func(r *Record) *string { return &r.Reason }),
	text(fDetail, func(r *Record) *string { return &r.Detail }),
	text(fComm, func(r *Record) *string { return &r.Process.Comm }),
	text(fPath, func(r *Record) *string { return &r.Path }),
	text(fModel, func(r *Record) *string { return &r.Model }),
	number(fPID, func(r *Record) *int { return &r.Process.PID }),
	number(fPPID, func(r *Record) *int { return &r.Process.PPID }),
	number(fPort, func(r *Record) *int { return &r.Port }),
	{fUID, putUID, readUID},
	{fHost, hostIf(false), readHost},
	{fAddr, hostIf(true), readHost},
}

// putUID gives the user as OCSF wants it, as text. Root's 0 is written
// whenever there is a process at all.
func putUID(b []byte, e *entry) []byte {
	if e.Process.UID == 0 && e.Process.PID == 0 {
		return b
	}
	b = strconv.AppendInt(append(b, '"'), int64(e.Process.UID), 10)
	return append(b, '"')
}

func readUID(r *Record, v any) (err error) {
	s, ok := v.(string)
	if !ok {
		return errType
	}
	r.Process.UID, err = strconv.Atoi(s)
	return err
}

func isAddr(host string) bool {
	if host == "" {
		return false
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}

func hostIf(addr bool) putter {
	return func(b []byte, e *entry) []byte {
		if e.addr != addr {
			return b
		}
		return appendWord(b, e.Host)
	}
}

func readHost(r *Record, v any) error {
	s, ok := v.(string)
	if !ok {
		return errType
	}
	r.Host = s
	return nil
}
