package ledger

import (
	"errors"
	"net/netip"
	"strconv"
)

// accessor reads and writes one field of a Record. get says whether the
// field is there.
type accessor struct {
	name field
	get  func(*Record) (any, bool)
	put  func(*Record, any) error
}

var errType = errors.New("value has the wrong type")

func text(name field, p func(*Record) *string) accessor {
	return accessor{
		name,
		func(r *Record) (any, bool) { s := *p(r); return s, s != "" },
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
		func(r *Record) (any, bool) { n := *p(r); return n, n != 0 },
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
	{fUID, getUID, putUID},
	{fHost, hostIf(false), putHost},
	{fAddr, hostIf(true), putHost},
}

// getUID gives the user as OCSF wants it, as text. Root's 0 is written
// whenever there is a process at all.
func getUID(r *Record) (any, bool) {
	return strconv.Itoa(r.Process.UID), r.Process.UID != 0 || r.Process.PID != 0
}

func putUID(r *Record, v any) (err error) {
	s, ok := v.(string)
	if !ok {
		return errType
	}
	r.Process.UID, err = strconv.Atoi(s)
	return err
}

func hostIf(addr bool) func(*Record) (any, bool) {
	return func(r *Record) (any, bool) {
		_, err := netip.ParseAddr(r.Host)
		return r.Host, r.Host != "" && addr == (err == nil)
	}
}

func putHost(r *Record, v any) error {
	s, ok := v.(string)
	if !ok {
		return errType
	}
	r.Host = s
	return nil
}
