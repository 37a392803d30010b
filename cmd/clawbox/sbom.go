package main

import (
	"fmt"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/clawbox/clawbox/bundle/content"
	"github.com/clawbox/clawbox/bundle/layer"
	"github.com/clawbox/clawbox/bundle/licence"
	"github.com/clawbox/clawbox/bundle/sbom"
	"github.com/spf13/cobra"
)

// sbomFormats are the documents that can be printed.
var sbomFormats = map[string]func(sbom.Document) ([]byte, error){
	"cyclonedx": sbom.Document.CycloneDX,
	"spdx":      sbom.Document.SPDX,
}

func sbomCmd(a *app) *cobra.Command {
	var dir, format string
	var secrets bool
	var allow []string
	c := &cobra.Command{
		Use:   "sbom REF --store DIR",
		Short: "List the software in an image, and look for key material in it",
		Long: `List the software in an image of a store or an OCI layout, as CycloneDX 1.6 or
SPDX 2.3. The same image gives the same bytes.

With --secrets every file is also searched for key material; what is found is
named by layer, file and offset, never shown, and ends the command with status 4.`,
		Args: usageArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			write, ok := sbomFormats[format]
			if !ok {
				return usageError{fmt.Errorf("--format: got %q, want cyclonedx or spdx", format)}
			}
			s, err := existingStore(a, dir)
			if err != nil {
				return err
			}
			d, err := s.Resolve(args[0])
			if err != nil {
				return err
			}
			var bad []licence.Finding
			report := licence.Allow(allow, &bad)
			var tee sbom.Tee
			if secrets {
				tee = secretTee(args[0], report)
			}
			found, err := sbom.ScanImages(cmd.Context(), s.Open, d, tee)
			if err != nil {
				return err
			}
			if secrets {
				for _, f := range found {
					if err := licence.ScanConfig(licence.Place{Item: args[0], File: "configuration"}, f.Config, report); err != nil {
						return err
					}
				}
			}
			if len(bad) > 0 {
				return &licence.SecretError{Findings: bad}
			}
			b, err := write(imageDocument(args[0], d, found))
			if err != nil {
				return err
			}
			_, err = exact(cmd.OutOrStdout()).Write(b)
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "store", "", "the store or OCI layout (default: the installed appliance's)")
	f.StringVar(&format, "format", "cyclonedx", "cyclonedx or spdx")
	f.BoolVar(&secrets, "secrets", false, "search every file for key material")
	f.StringArrayVar(&allow, "allow-secret", nil, "fingerprint of a published test key that may be there (repeatable)")
	return c
}

// secretTee scans each file of an image with one buffer.
func secretTee(item string, report func(licence.Finding)) sbom.Tee {
	s := licence.NewScanner(licence.Place{}, report)
	return func(h v1.Hash, e layer.Entry) io.Writer {
		s.Reset(licence.Place{Item: item, File: "layer " + h.Hex[:12] + ", " + e.Path})
		return s
	}
}

// imageDocument describes one image; it has no time but the epoch's, as a store
// doesn't know when it was released.
func imageDocument(ref string, d v1.Descriptor, found []sbom.Found) sbom.Document {
	doc := sbom.Document{Name: ref, Digest: d.Digest, Created: time.Unix(0, 0)}
	for _, f := range found {
		doc.Parts = append(doc.Parts, sbom.Part{Name: ref + " " + f.Platform, Kind: "image", Digest: f.Digest, Image: f.Image})
	}
	return doc
}

// existingStore opens a store that must be there: the named one, or the
// installed appliance's.
func existingStore(a *app, dir string) (*content.Store, error) { return storeAt(a, dir, false) }
